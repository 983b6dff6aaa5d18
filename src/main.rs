//! The `rlhf` binary; everything is in the library.

fn main() -> std::process::ExitCode {
    rlhf::cli::main(std::env::args_os())
}
