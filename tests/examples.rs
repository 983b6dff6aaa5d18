//! The examples do what they say, and stay as short. They are compiled into this binary, so that what runs here is
//! always what stands in tests/examples/.

#[path = "examples/custom_kernel.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod custom_kernel;
#[path = "examples/custom_reward.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod custom_reward;

use rlhf::custom::{Source, Tensor};
use rlhf::{Device, Pretrained};

use crate::support::{Room, prompts};

/// Lines of the whole file but blank ones and comments.
fn lines_of_code(text: &str) -> usize {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[test]
fn a_reward_of_ones_own_takes_forty_lines() {
    assert_eq!(lines_of_code("//! A.\n\nfn a() {\n    // b\n    c();\n}\n"), 3);
    let lines = lines_of_code(include_str!("examples/custom_reward.rs"));
    assert!(lines <= 40, "{lines} lines");
}

#[test]
fn ppo_against_a_reward_of_ones_own_moves_the_policy() {
    let room = Room::new();
    room.model("base", "llama_tied");
    room.rows("prompts.jsonl", &prompts(16));
    let path = |name: &str| room.path(name).display().to_string();
    custom_reward::train(&path("base"), &path("prompts.jsonl"), &path("aligned"), "a").unwrap();
    let saved = Pretrained::load(&Device::Cpu, path("aligned")).unwrap();
    assert_eq!(
        saved.stop_tokens().unwrap(),
        Pretrained::load(&Device::Cpu, path("base")).unwrap().stop_tokens().unwrap()
    );
    let weights = |name: &str| room.read(&format!("{name}/model.safetensors"));
    assert_eq!(weights("base").len(), weights("aligned").len());
    assert_ne!(weights("base"), weights("aligned"), "no step was taken");
    // The word decides: the same run with another one ends elsewhere.
    custom_reward::train(&path("base"), &path("prompts.jsonl"), &path("other"), "e").unwrap();
    assert_ne!(weights("other"), weights("aligned"), "the reward does not read the answers");
}

/// The example's kernels, with a change that must be there to be made.
fn doctored(from: &str, to: &str) -> &'static Source {
    let text = custom_kernel::PTX.replace(from, to);
    assert_ne!(text, custom_kernel::PTX, "{from}");
    Box::leak(Box::new(Source::new("doctored", text.leak())))
}

#[test]
fn a_kernel_of_ones_own_computes_what_its_reference_does() {
    let [outputs, gradients, slopes] = custom_kernel::differences(&custom_kernel::SQUARED_RELU).unwrap();
    assert_eq!((outputs, gradients), (0.0, 0.0));
    assert!(slopes <= 1e-3, "{slopes}");
}

#[test]
fn a_kernel_that_computes_something_else_is_found() {
    let of = |from, to| custom_kernel::differences(doctored(from, to)).unwrap();
    assert!(of("mul.f32 %f1, %f1, %f1;", "mul.f32 %f1, %f1, 0f40000000;")[0] > 1.0, "a wrong output");
    assert!(of("0f40000000", "0f40400000")[1] > 1.0, "a wrong gradient");
}

#[test]
fn a_kernel_that_goes_astray_is_found() {
    let id = |from, to| custom_kernel::differences(doctored(from, to)).unwrap_err().id();
    assert_eq!(id("setp.ge.s64 %p1, %rd4, %rd3", "setp.gt.s64 %p1, %rd4, %rd3"), "kernel-fault", "one element too far");
    assert_eq!(id("setp.ge.s64 %p1, %rd4, %rd3", "setp.ne.s64 %p1, %rd4, %rd3"), "kernel-fault", "hardly any");
    assert_eq!(id(".param .u64 n", ".param .u64 n, .param .u32 m"), "launch-arguments");
    assert_eq!(id("squared_relu_forward_f32", "forward"), "kernel-missing");
    assert_eq!(id("setp.ge.s64", "compare"), "kernel-text");
}

#[test]
fn numbers_that_are_not_finite_pass_through() {
    for device in [Device::Cpu, Device::parse("emulated").unwrap()] {
        let x = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
        let x = Tensor::new(&device, &[2, 2], x).unwrap();
        let y = custom_kernel::squared_relu(&x, &custom_kernel::SQUARED_RELU).unwrap();
        let values = y.to_vec().unwrap();
        assert!(values[0].is_nan() && values[1..] == [f32::INFINITY, 0.0, 0.0], "{values:?}");
        assert_eq!(y.shape(), [2, 2]);
    }
}
