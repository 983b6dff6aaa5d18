#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rlhf_fuzz::hold(rlhf::fuzz::jsonl, bytes));
