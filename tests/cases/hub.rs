//! `hub-file` against a server that speaks as much of the hub as its client asks for, and without any.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Project, text, trestle};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ETAG: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A server of one file of one repository; gives its address and counts what it is asked.
fn server(body: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            let range = lines
                .take_while(|line| !line.is_empty())
                .filter_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned))
                .last();
            count.fetch_add(1, Ordering::SeqCst);
            let found = [COMMIT, "main"].iter().any(|revision| first.contains(&format!("/owner/name/resolve/{revision}/w.bin ")));
            let (status, part) = match (found, range) {
                (false, _) => ("404 Not Found", &b""[..]),
                (true, Some(range)) => {
                    let (from, to) = range.split_once('-').unwrap();
                    let from = from.parse::<usize>().unwrap();
                    let to = to.parse::<usize>().map_or(body.len(), |to| (to + 1).min(body.len()));
                    ("206 Partial Content", &body[from..to])
                }
                (true, None) => ("200 OK", body),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nx-repo-commit: {COMMIT}\r\netag: \"{ETAG}\"\r\ncontent-range: bytes 0-0/{}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len(),
                part.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(part));
        }
    });
    (address, asked)
}

fn project(with: &str) -> Project {
    Project::new(&format!(
        "stages:\n  weights: {{ uses: hub-file, with: {{ repo: owner/name, file: w.bin, {with} }} }}\n  copy: {{ run: 'cat {{in.file}} > {{out.copy}}', in: {{ file: weights.file }}, out: {{ copy: copy }} }}\n"
    ))
}

fn run(project: &Project, home: &Path, variables: &[(&str, &str)]) -> Output {
    trestle(project.path()).args(["run", "--format", "json"]).env("HF_HOME", home).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn a_file_is_fetched_once_and_never_without_need() {
    let (address, asked) = server(b"weights");
    let home = tempfile::tempdir().unwrap();
    let project = project(&format!("revision: {COMMIT}"));
    let done = text(run(&project, home.path(), &[("HF_ENDPOINT", &address)]));
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_eq!(project.output("copy", "copy"), "weights");
    let before = asked.load(Ordering::SeqCst);
    assert!(before > 0);
    // Neither the address nor being offline is part of the key.
    let done = text(run(&project, home.path(), &[("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HUB_OFFLINE", "1")]));
    assert!(done.out.contains("\"executed\":0"), "{}", done.out);
    // Another project takes the file from the hub's cache, offline.
    let other = self::project(&format!("revision: {COMMIT}"));
    let done = text(run(&other, home.path(), &[("HF_HUB_OFFLINE", "1")]));
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_eq!(other.output("copy", "copy"), "weights");
    assert_eq!(asked.load(Ordering::SeqCst), before);
}

#[test]
fn what_is_not_there_or_not_the_same_is_refused() {
    let (address, _) = server(b"weights");
    let home = tempfile::tempdir().unwrap();
    let fails = |with: &str, variables: &[(&str, &str)], words: &str| {
        let project = project(with);
        let done = text(run(&project, home.path(), variables));
        assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
        assert!(done.out.contains(words), "{} / {words}", done.out);
        assert_eq!(project.blobs().len(), 0, "a failed stage left an output");
    };
    let here = [("HF_ENDPOINT", address.as_str())];
    fails(&format!("revision: {COMMIT}"), &[("HF_HUB_OFFLINE", "1")], "HF_HUB_OFFLINE is set");
    fails(&format!("revision: {}", "f".repeat(40)), &here, "`w.bin` of owner/name");
    // Right for other bytes.
    fails(&format!("revision: main, sha256: {}", "0".repeat(64)), &here, "its sha256 is ");
    let done = project("revision: main").call(&["check"]);
    assert!(done.code != Some(0) && done.err.contains("a branch gives other"), "{}{}", done.out, done.err);
}
