//! Text to tokens, on the host.

pub mod demo;
/// stub
pub mod encode {
    #![allow(missing_docs)]
    #[derive(Debug, Clone)]
    pub struct SftExample {
        pub ids: Vec<i32>,
        pub is_target: Vec<bool>,
        pub place: String,
    }
    #[derive(Debug, Clone)]
    pub struct PairExample {
        pub chosen: Vec<i32>,
        pub rejected: Vec<i32>,
        pub margin: f32,
        pub place: String,
    }
    #[derive(Debug, Clone)]
    pub struct PromptExample {
        pub ids: Vec<i32>,
        pub text: String,
        pub place: String,
    }
}
