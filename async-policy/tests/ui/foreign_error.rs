use async_policy::{Guard, Timeout};

fn main() {
    let _ = Timeout::from_millis(250).run(async { Ok::<u32, std::io::Error>(7) });
}
