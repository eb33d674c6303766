//! Sources: hashed for the first time beside b3sum, and looked at again beside `git status`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::measure::{Order, Taken, measure};
use crate::phases::{Settings, end_of, progress, settle};
use crate::results::Row;
use crate::tools::{Phase, Tool, call, remove};

/// Times b3sum's throughput above which we do not believe that anything was hashed.
const INCREDIBLE: f64 = 6.0;
/// Files in a folder of the many.
const PER_FOLDER: usize = 1000;

/// How much is hashed.
pub struct Amounts {
    /// Bytes of the one file.
    pub large: u64,
    /// The many files: how many.
    pub files: usize,
    /// The many files: bytes of each.
    pub each: u64,
    /// The files beside `git status`: how many.
    pub tracked: usize,
}

/// A command that is measured, and what has to be done before each run of it.
struct Entry<'a> {
    name: &'a str,
    command: Vec<String>,
    folder: &'a Path,
    /// A folder that goes before each run.
    forget: Option<PathBuf>,
    /// A word that its output must hold.
    says: &'static str,
}

/// First hashing of one large file and of many small ones.
pub fn first(settings: &Settings, trestle: &Tool, b3sum: &str, amounts: &Amounts) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let large = settings.work.join("hash-large");
    fresh(&large)?;
    in_words(&large, write_random(&large.join("data"), amounts.large, 1))?;
    rows.extend(hashed(
        settings,
        trestle,
        b3sum,
        &large,
        &format!("a file of {} MiB", amounts.large >> 20),
        &["data".to_owned()],
        amounts.large,
    )?);
    tidy(settings, &large)?;
    let many = settings.work.join("hash-many");
    fresh(&many)?;
    let names = in_words(&many, write_many(&many.join("data"), amounts.files, amounts.each))?;
    let names: Vec<String> = names.iter().map(|name| format!("data/{name}")).collect();
    rows.extend(hashed(
        settings,
        trestle,
        b3sum,
        &many,
        &format!("files of {} KiB", amounts.each >> 10),
        &names,
        amounts.files as u64 * amounts.each,
    )?);
    tidy(settings, &many)?;
    Ok(rows)
}

/// `plan` needs the digest of every source, and does nothing else.
fn hashed(
    settings: &Settings,
    trestle: &Tool,
    b3sum: &str,
    folder: &Path,
    subject: &str,
    names: &[String],
    bytes: u64,
) -> Result<Vec<Row>, String> {
    write_pipeline(folder)?;
    let digest: Vec<String> = [b3sum.to_owned()].into_iter().chain(names.iter().cloned()).collect();
    // Also brings the files into the page cache.
    run(settings, &digest, folder, "").map_err(|(_, why)| why)?;
    let entries = [
        Entry { name: "trestle", command: trestle.command(Phase::Plan), folder, forget: Some(folder.join(".trestle")), says: "1 to run" },
        Entry { name: "b3sum", command: digest, folder, forget: None, says: "data" },
    ];
    let mut rows = rounds(settings, &entries, subject, names.len(), Phase::Hash)?;
    for row in &mut rows {
        row.bytes = Some(bytes);
    }
    let walls: Vec<f64> = rows.iter().map(|row| row.wall).collect();
    if rows[0].invalid.is_none() && walls[1] > INCREDIBLE * walls[0] {
        rows[0].invalid = Some(format!("{:.3} s: not believed, `plan` cannot have hashed this", walls[0]));
    }
    Ok(rows)
}

/// Unchanged files, as an input and in a git repository.
pub fn unchanged(settings: &Settings, trestle: &Tool, amounts: &Amounts) -> Result<Vec<Row>, String> {
    let (ours, gits) = (settings.work.join("status-trestle"), settings.work.join("status-git"));
    for folder in [&ours, &gits] {
        fresh(folder)?;
        in_words(folder, write_many(&folder.join("data"), amounts.tracked, 64))?;
    }
    // Files as old as the index are looked at again by their bytes, by git and by us.
    std::thread::sleep(Duration::from_secs(2));
    write_pipeline(&ours)?;
    let commit = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "start"];
    for words in [&["git", "init", "-q"][..], &["git", "add", "-A"], &commit, &["git", "status"]] {
        in_words(&gits, call(&gits, words))?;
    }
    run(settings, &trestle.command(Phase::Full), &ours, "1 executed").map_err(|(_, why)| format!("trestle run: {why}"))?;
    let entry = |name, phase, says| Entry { name, command: trestle.command(phase), folder: &ours, forget: None, says };
    let status = ["git", "status", "--porcelain"].map(str::to_owned).to_vec();
    let entries = [
        entry("trestle", Phase::Noop, "0 executed"),
        entry("trestle plan", Phase::Plan, "0 to run, 0 later"),
        Entry { name: "git", command: status, folder: &gits, forget: None, says: "" },
    ];
    let rows = rounds(settings, &entries, "files of 64 bytes", amounts.tracked, Phase::GitStatus)?;
    tidy(settings, &ours)?;
    tidy(settings, &gits)?;
    Ok(rows)
}

fn rounds(settings: &Settings, entries: &[Entry], subject: &str, count: usize, phase: Phase) -> Result<Vec<Row>, String> {
    let mut runs: Vec<(Vec<Taken>, Option<String>)> = entries.iter().map(|_| (Vec::new(), None)).collect();
    for round in 0..settings.repeat {
        for (entry, (runs, invalid)) in entries.iter().zip(&mut runs).filter(|(_, (_, invalid))| invalid.is_none()) {
            progress(&format!("{subject} {count} {phase:?}, round {}: {}", round + 1, entry.name));
            if let Some(forget) = &entry.forget {
                in_words(forget, remove(forget))?;
            }
            match run(settings, &entry.command, entry.folder, entry.says) {
                Ok(taken) => runs.push(taken),
                Err((taken, why)) => {
                    runs.extend(taken);
                    *invalid = Some(why);
                }
            }
        }
    }
    progress("");
    let row = |(entry, (runs, invalid)): (&Entry, _)| Row::new(subject, count, phase, entry.name, 0, runs, invalid);
    Ok(entries.iter().zip(runs).map(row).collect())
}

/// One run, which must end well and say what it has to.
fn run(settings: &Settings, command: &[String], folder: &Path, says: &str) -> Result<Taken, (Option<Taken>, String)> {
    settle(folder);
    let log = folder.with_extension("log");
    let order = Order { command: command.to_vec(), folder: folder.to_owned(), log: log.clone(), limit: settings.limit };
    let taken = measure(&order).map_err(|why| (None, why))?;
    if let Some(why) = &taken.failure {
        let why = format!("{why}; {}", end_of(&log));
        return Err((Some(taken), why));
    }
    let text = fs::read(&log).map_err(|e| (None, format!("{}: {e}", log.display())))?;
    if !String::from_utf8_lossy(&text).contains(says) {
        return Err((Some(taken), format!("it did not say `{says}` but: {}", end_of(&log))));
    }
    Ok(taken)
}

fn write_pipeline(folder: &Path) -> Result<(), String> {
    let text =
        "stages:\n  count:\n    in: { data: ./data }\n    run: \"ls {in.data} | wc -l > {out.count}\"\n    out: { count: count.txt }\n";
    in_words(folder, fs::write(folder.join("trestle.yaml"), text))
}

fn fresh(folder: &Path) -> Result<(), String> {
    in_words(folder, remove(folder).and_then(|()| fs::create_dir_all(folder)))
}

fn tidy(settings: &Settings, folder: &Path) -> Result<(), String> {
    if settings.keep { Ok(()) } else { in_words(folder, remove(folder)) }
}

fn in_words<T>(place: &Path, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{}: {e}", place.display()))
}

/// Files of random bytes in folders of a thousand; gives their names.
fn write_many(folder: &Path, files: usize, each: u64) -> io::Result<Vec<String>> {
    let mut names = Vec::with_capacity(files);
    for i in 0..files {
        let sub = format!("{:04}", i / PER_FOLDER);
        if i % PER_FOLDER == 0 {
            fs::create_dir_all(folder.join(&sub))?;
        }
        let name = format!("{sub}/{i:07}.bin");
        write_random(&folder.join(&name), each, i as u64)?;
        names.push(name);
    }
    Ok(names)
}

/// A file of bytes that do not compress, the same for the same seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn write_random(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let mut left = bytes;
    let mut block = vec![0u8; usize::try_from(bytes.min(1 << 20)).unwrap_or(1 << 20)];
    while left > 0 {
        for word in block.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..word.len()]);
        }
        let part = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        file.write_all(&block[..part])?;
        left -= part as u64;
    }
    Ok(())
}
