//! Real processes and real signals: this test binary starts itself again as the program that gets them.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child as Process, ChildStdout, Command, Stdio};
use std::time::Duration;

use async_supervisor::{Child, Context, Shutdown, Supervisor};

const ROLE: &str = "SUPERVISOR_TEST_ROLE";
const HELD: &str = "SUPERVISOR_TEST_HELD";

/// A name that one process at a time can have.
#[cfg(target_os = "linux")]
fn hold(name: &str) -> std::os::unix::net::UnixListener {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    std::os::unix::net::UnixListener::bind_addr(&address).expect("nobody holds it")
}

#[cfg(not(target_os = "linux"))]
fn hold(_: &str) {}

/// The program under test; a no-op when the tests run as usual.
#[test]
fn program() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "@{line}").unwrap();
        out.flush().unwrap();
    };
    let name = std::env::var(HELD).unwrap();
    if role == "conventional" {
        tracing_subscriber::fmt().with_ansi(false).without_time().init();
    }
    let report = runtime.block_on(async {
        let orderly = |name: &'static str| {
            Child::new(name, async |ctx: Context| {
                ctx.cancelled().await;
                println!("@-{}", ctx.name());
            })
        };
        let deaf = Child::new("deaf", async |ctx: Context| {
            ctx.cancelled().await;
            println!("@asked");
            // Real time, since signals are told apart by it.
            tokio::time::sleep(Duration::from_millis(600)).await;
            println!("@later");
            std::future::pending::<()>().await;
        })
        .with_shutdown(Shutdown::Timeout(Duration::from_secs(3600)));
        let held = Child::blocking("held", move |ctx: Context| {
            // Something that a killed process must not keep from its successor.
            let _held = hold(&name);
            ctx.ready();
            tokio::runtime::Handle::current().block_on(ctx.cancelled());
        })
        .with_readiness(Duration::from_secs(60));
        let supervisor = Supervisor::one_for_one().with_children([orderly("a"), held, orderly("b")]);
        let running = match &*role {
            "deaf" => {
                let supervisor = supervisor.with_abort_grace(Duration::from_secs(1));
                supervisor.with_child(deaf).start().await.unwrap()
            }
            // Ends by itself, a while after it was asked to.
            "stopping" => {
                let deaf = deaf.with_shutdown(Shutdown::Timeout(Duration::from_millis(800)));
                supervisor.with_child(deaf).start().await.unwrap()
            }
            "fails" => {
                let fails = Child::new("fails", async |ctx: Context| {
                    ctx.cancelled().await;
                    Err("could not flush")
                });
                supervisor.with_child(fails).start().await.unwrap()
            }
            "starting" => supervisor
                .with_child(orderly("never ready").with_readiness(Duration::from_secs(3600)))
                .spawn()
                .unwrap(),
            _ => supervisor.start().await.unwrap(),
        };
        while running.snapshot().child("b").unwrap().attempts == 0 {
            tokio::task::yield_now().await;
        }
        // By its first poll it listens to signals.
        let handle = running.handle();
        let up = async {
            say("up");
            if role == "stopping" {
                handle.request_stop();
            }
        };
        tokio::join!(running.run_until_signal(), up).0.unwrap()
    });
    say(&format!("{report}"));
    if role == "conventional" {
        let code = report.signal().map(|signal| format!("{:?}", signal.exit_code()));
        let is = |code: u8| format!("{:?}", std::process::ExitCode::from(code));
        let codes = [130, 143].into_iter().find(|known| code == Some(is(*known)));
        std::process::exit(codes.map_or(4, i32::from));
    }
    // A test cannot return an exit code.
    let success = format!("{:?}", report.exit_code()) == format!("{:?}", std::process::ExitCode::SUCCESS);
    std::process::exit(if success { 0 } else { 3 });
}

struct Program {
    process: Process,
    out: BufReader<ChildStdout>,
}

impl Program {
    fn start(role: &str, held: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "signals::program", "--nocapture"])
            .env(ROLE, role)
            .env(HELD, held)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let mut program = Self { process, out };
        assert_eq!(program.line(), "up");
        program
    }

    /// The next line of the program's own.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "the program ended");
            if let Some((_, line)) = line.trim_end().split_once('@') {
                return line.to_owned();
            }
        }
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill {name} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn code(&mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn held(name: &str) -> String {
    format!("async-supervisor-{name}-{}", std::process::id())
}

#[test]
fn sigterm_and_sigint_stop_it_in_order_with_a_report() {
    for (signal, told) in [("-TERM", "SIGTERM"), ("-INT", "SIGINT")] {
        let name = held(signal);
        let mut program = Program::start("orderly", &name);
        program.signal(signal);
        assert_eq!(program.line(), "-b");
        assert_eq!(program.line(), "-a");
        let report = program.line();
        assert!(report.starts_with(&format!("supervisor `supervisor` stopped by {told} (in ")), "{report}");
        assert_eq!(program.code(), Some(0));
    }
}

#[test]
fn a_program_can_end_as_one_that_a_signal_has_ended() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut program = Program::start("conventional", &held(&format!("conventional{signal}")));
        program.signal(signal);
        let mut said = String::new();
        program.out.read_to_string(&mut said).unwrap();
        assert_eq!(program.code(), Some(code), "{said}");
        let told = if code == 143 { "SIGTERM" } else { "SIGINT" };
        let mut lines = said.lines();
        let logged = [
            format!("signal received supervisor=\"supervisor\" signal={told}"),
            "stopping supervisor=\"supervisor\"".to_owned(),
            format!(
                "stopped supervisor=\"supervisor\" report=supervisor `supervisor` stopped by {told} (in "
            ),
        ];
        for line in logged.iter().filter(|_| cfg!(feature = "tracing")) {
            assert!(
                lines.any(|said| said.contains(&format!("INFO async_supervisor: {line}"))),
                "{line}\n{said}"
            );
        }
    }
}

#[test]
fn a_signal_during_another_stop_is_not_what_ended_it() {
    let mut program = Program::start("stopping", &held("stopping"));
    assert_eq!(program.line(), "asked");
    program.signal("-TERM");
    assert_eq!(program.line(), "later");
    let report = loop {
        let line = program.line();
        if line.starts_with("supervisor") {
            break line;
        }
    };
    assert!(report.starts_with("supervisor `supervisor` stopped (in "), "{report}");
}

#[test]
fn a_failure_in_the_stop_is_in_the_report_and_in_the_exit_code() {
    let name = held("fails");
    let mut program = Program::start("fails", &name);
    program.signal("-TERM");
    assert_eq!((program.line().as_str(), program.line().as_str()), ("-b", "-a"));
    let report = program.line();
    assert!(report.ends_with("; `fails` failed: could not flush"), "{report}");
    assert_eq!(program.code(), Some(3));
}

#[test]
fn a_signal_during_start_up_stops_what_has_been_started_in_order() {
    let name = held("starting");
    let mut program = Program::start("starting", &name);
    program.signal("-INT");
    for line in ["-never ready", "-b", "-a"] {
        assert_eq!(program.line(), line);
    }
    assert!(program.line().starts_with("supervisor `supervisor` stopped by SIGINT (in "));
    assert_eq!(program.code(), Some(0));
}

#[test]
fn a_second_signal_forces_and_lets_close_who_waits_for_its_turn() {
    let name = held("forced");
    let mut program = Program::start("deaf", &name);
    program.signal("-TERM");
    // `deaf` would take an hour.
    assert_eq!(program.line(), "asked");
    // Signals that come together count as one.
    program.signal("-TERM");
    assert_eq!(program.line(), "later");
    program.signal("-INT");
    // Those that only wait for their turn have it now.
    let mut closed = [program.line(), program.line()];
    closed.sort();
    assert_eq!(closed, ["-a", "-b"]);
    let report = program.line();
    assert!(report.ends_with("; aborted: deaf"), "{report}");
    assert_eq!(program.code(), Some(3));
}

#[test]
fn sigkill_leaves_nothing_that_blocks_the_next_start() {
    let name = held("killed");
    let mut program = Program::start("orderly", &name);
    program.signal("-KILL");
    assert_eq!(program.code(), None);
    let mut next = Program::start("orderly", &name);
    next.signal("-TERM");
    assert_eq!(next.line(), "-b");
    assert_eq!(next.code(), Some(0));
}
