//! wip
fn main() {
    let seed = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1);
    let quick = std::env::args().any(|a| a == "--quick");
    let options = rlhf::train::demo::DemoOptions { seed, quick, device: rlhf::device::Device::Cpu };
    let dir = std::env::temp_dir().join(format!("demo-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut journal = rlhf::train::metrics::Journal::new(&dir, false).unwrap();
    match rlhf::train::demo::run(&options, &dir, &mut journal) {
        Ok(s) => println!("{}\n{:?}\n{}", serde_json::to_string_pretty(&s).unwrap(), journal.seconds(), dir.display()),
        Err(e) => println!("error: {e}"),
    }
}
