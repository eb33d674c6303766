//! The real binary in a terminal of its own.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// What a command writes to a terminal of 24 lines with this many columns. Its standard output is the terminal; colours are allowed.
pub fn in_terminal(dir: &Path, columns: u16, args: &[&str]) -> String {
    let outer = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&outer).unwrap();
    unlockpt(&outer).unwrap();
    let inner = open(ptsname(&outer, Vec::new()).unwrap(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    tcsetwinsize(&inner, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut command = super::trestle(dir);
    command.args(args).env_remove("NO_COLOR").env_remove("COLUMNS").env("TERM", "xterm-256color").stdout(Stdio::from(inner));
    let mut child = command.spawn().unwrap();
    // Our copy of the inner end must go, or reading never ends.
    drop(command);
    let text = read(outer);
    assert!(child.wait().unwrap().success(), "{text}");
    text
}

/// All that comes until nobody holds the other end: Linux says that with an error.
fn read(outer: OwnedFd) -> String {
    let (mut file, mut bytes, mut part) = (File::from(outer), Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = file.read(&mut part) {
        bytes.extend_from_slice(&part[..count]);
    }
    String::from_utf8(bytes).unwrap()
}
