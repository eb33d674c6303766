//! Commands so simple that they need no shell.
//!
//! Starting a shell only to start one program costs as much as the program. Like GNU make, a script that is one program with plain words,
//! and perhaps `> file` at its end, is started as that program; the shell would do nothing else with it. Everything else goes to the shell.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A program with its words.
#[derive(Debug, PartialEq, Eq)]
pub struct Direct<'s> {
    /// As written: a name, or a path with a `/`.
    pub program: &'s str,
    /// The words after it.
    pub arguments: Vec<&'s str>,
    /// The file that takes its standard output.
    pub stdout: Option<&'s str>,
}

/// What a POSIX shell does itself, or reads as a word of its language.
const SHELL_WORDS: [&str; 63] = [
    "!", ".", ":", "[", "alias", "bg", "bind", "break", "builtin", "case", "cd", "command", "continue", "declare", "dirs", "do", "done",
    "echo", "elif", "else", "esac", "eval", "exec", "exit", "export", "false", "fc", "fg", "fi", "for", "function", "getopts", "hash",
    "help", "history", "if", "in", "jobs", "kill", "let", "local", "printf", "pwd", "read", "readonly", "return", "select", "set", "shift",
    "source", "test", "then", "time", "times", "trap", "true", "type", "ulimit", "umask", "unalias", "unset", "until", "wait",
];

/// The script as a program with words, if it is no more than that.
pub fn parse(script: &str) -> Option<Direct<'_>> {
    let script = script.trim_matches([' ', '\n']);
    let (command, stdout) = match script.split_once('>') {
        None => (script, None),
        Some((command, target)) => {
            // A digit before `>` would be the number of a file.
            let is_plain = command.ends_with(' ') && !target.trim().is_empty() && target.trim().chars().all(is_plain);
            (command, Some(target.trim()).filter(|_| is_plain).map(Some)?)
        }
    };
    let mut words = command.split(' ').filter(|word| !word.is_empty());
    let program = words.next()?;
    if program.contains('=') || program == "while" || SHELL_WORDS.contains(&program) {
        return None;
    }
    let arguments: Vec<&str> = words.collect();
    let plain = [program].iter().chain(&arguments).all(|word| word.chars().all(is_plain));
    plain.then_some(Direct { program, arguments, stdout })
}

/// Means itself to every shell, wherever in a word it stands.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/._-=,+:@%".contains(c)
}

/// The file that the shell would start for `program`.
pub fn find(program: &str, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    if program.contains('/') {
        return None;
    }
    let is_program = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    // Where a system looks that is not told where.
    env.get("PATH")
        .map_or("/bin:/usr/bin", String::as_str)
        .split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(|folder| PathBuf::from(folder).join(program))
        .find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_commands_need_no_shell() {
        let direct = parse("md5sum in/a/o.txt  in/b/o.txt > o.txt\n");
        assert_eq!(direct, Some(Direct { program: "md5sum", arguments: vec!["in/a/o.txt", "in/b/o.txt"], stdout: Some("o.txt") }));
        assert_eq!(parse("sort -k1,1 x"), Some(Direct { program: "sort", arguments: vec!["-k1,1", "x"], stdout: None }));
    }

    #[test]
    fn what_a_shell_would_read_differently_goes_to_the_shell() {
        let scripts = [
            "",
            "echo a > b",
            "A=1 cat x",
            "cat x | wc",
            "cat $x",
            "cat *",
            "cat 'a b'",
            "cat a > b > c",
            "cat a 2> b",
            "cat a >> b",
            "cat a>b",
            "cat a; cat b",
            "cat a\ncat b",
            "cat ~/x",
            "cat x # y",
            "cat x &",
            "cat < x",
            "if x",
            "cd x",
            "cat {a,b}",
            "cat a\\ b",
            "cat \"a\"",
            "cat a > b c",
            "cat a\tb",
            "while x",
            "cat a >",
            "cat x?",
        ];
        for script in scripts {
            assert_eq!(parse(script), None, "{script:?}");
        }
    }
}
