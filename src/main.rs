//! The `rlhf` binary; everything is in the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    rlhf::cli::main(std::env::args_os())
}
