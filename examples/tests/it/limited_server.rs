//! `limited_server` as a user runs it: a real server, real HTTP clients.

use std::process::{Command, Stdio};

#[test]
fn who_obeys_retry_after_is_always_answered_and_a_crowd_finds_the_bulkhead_full() {
    // Cargo builds the examples of a package before it runs its tests, next to them.
    let tests = std::env::current_exe().expect("this test is a program");
    let built = tests.ancestors().nth(2).expect("a folder of its own").join("examples");
    let program = built.join(format!("limited_server{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "{} is missing: cargo build -p examples --examples", program.display());
    let ended = Command::new(program).stdin(Stdio::null()).output().expect("it starts");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));

    let rows: Vec<Vec<&str>> = said
        .lines()
        .filter(|line| line.contains('┆'))
        .map(|line| line.split(['│', '┆']).map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let [header, clients @ .., strangers] = &rows[..] else { panic!("no table in\n{said}") };
    let cell = |row: &Vec<&str>, title: &str| -> u32 {
        let at = header.iter().position(|cell| *cell == title);
        let text = row[at.unwrap_or_else(|| panic!("no {title:?} in\n{said}"))];
        let number = text.split([' ', '.']).next().and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{text:?} is no number in\n{said}"))
    };
    assert_eq!(clients.len(), 4, "{said}");
    for client in clients {
        assert_eq!(cell(client, "answers"), 12, "{said}");
        assert_eq!(cell(client, "requests"), 12 + cell(client, "429"), "{said}");
        // Twelve do not fit into a burst of three, unless each took as long as a cell needs to come back.
        if cell(client, "429") > 0 {
            assert!(cell(client, "Retry-After") > 0, "{said}");
        } else {
            assert!(cell(client, "took") >= 2, "{said}");
        }
        // Who waits as long as it is told is let in.
        assert_eq!(cell(client, "429 again"), 0, "{said}");
    }
    let (answers, full) = (cell(strangers, "answers"), cell(strangers, "503"));
    assert_eq!((answers + full, cell(strangers, "429")), (40, 0), "{said}");
    assert!(answers >= 8 && full > 0, "{said}");
}
