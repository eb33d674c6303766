//! Signals, and who is still there.

use std::process::{Command, Stdio};

/// Sends a signal to a process, or with a `-` before it to a process group.
#[track_caller]
pub fn signal(name: &str, whom: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), "--", whom]).status().unwrap().success(), "kill -{name} {whom}");
}

/// The state and the session of a process.
fn stat(pid: &str) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.to_owned();
    Some((state, fields.nth(2)?.to_owned()))
}

/// Whether a process runs: one that is over and not waited for does not.
pub fn lives(pid: &str) -> bool {
    stat(pid).is_some_and(|(state, _)| !["Z", "X"].contains(&state.as_str()))
}

/// The processes of a session that run.
pub fn of_session(session: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    all.filter(|pid| pid.parse::<u32>().is_ok() && lives(pid) && stat(pid).is_some_and(|(_, of)| of == session)).collect()
}

/// Ends all processes of a session at once, whatever groups they are in.
pub fn kill_session(session: &str) {
    loop {
        let found = of_session(session);
        if found.is_empty() {
            return;
        }
        // Some may have ended by themselves meanwhile.
        let _ = Command::new("kill").arg("-KILL").args(found).stderr(Stdio::null()).status();
    }
}
