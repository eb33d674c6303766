//! `trestle cache gc` and `trestle cache verify`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use trestle_cache::{ActionKey, Bounds, Cache, Collected, Verified};
use trestle_engine::executor::end_below;
use trestle_engine::memo::Memo;

use crate::args::{CacheCommand, Format, Gc, Verify};
use crate::fail::Fail;
use crate::project::cache_folder;

/// Runs one of them.
pub fn cache(command: &CacheCommand) -> Result<ExitCode, Fail> {
    match command {
        CacheCommand::Gc(args) => gc(args),
        CacheCommand::Verify(args) => verify(args),
    }
}

fn gc(args: &Gc) -> Result<ExitCode, Fail> {
    let folder = cache_folder(args.cache.as_deref())?;
    let bounds = Bounds {
        max_size: args.max_size.as_deref().map(bytes).transpose()?,
        max_age: args.max_age.as_deref().map(age).transpose()?,
        dry_run: args.dry_run,
    };
    let cache = Cache::open(&folder)?;
    let Some(alone) = cache.try_lock()? else {
        return Err(Fail::with_help("a run is using this cache", "wait for it to end, then call again"));
    };
    let swept = if args.dry_run { 0 } else { cache.sweep_tmp(&mut |folder| end_below(folder))? };
    let collected = cache.collect(&alone, &live(&folder), &bounds)?;
    crate::print(&match args.format {
        Format::Human => describe(&collected, args.dry_run, swept),
        Format::Json => format!("{}\n", as_json(&collected, args.dry_run)),
    })
}

/// Keys that some pipeline of this cache had in its last run.
fn live(folder: &Path) -> BTreeSet<ActionKey> {
    let entries = std::fs::read_dir(folder.join("plans")).into_iter().flatten().flatten();
    let memos = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "memo"));
    memos.filter_map(|path| Memo::load(&path)).flat_map(|memo| memo.keys.into_iter().flatten()).collect()
}

fn describe(collected: &Collected, dry_run: bool, swept: usize) -> String {
    let verb = if dry_run { "would remove" } else { "removed" };
    let mut text = format!(
        "{verb} {} of {} records and {} of {} blobs: {} of {}; {} records are in use and stay\n",
        collected.records_removed,
        collected.records,
        collected.blobs_removed,
        collected.blobs,
        size(collected.bytes_removed),
        size(collected.bytes),
        collected.records_live
    );
    if swept > 0 {
        text.push_str(&format!("removed the temporary files of {swept} run(s) that were killed\n"));
    }
    text
}

fn as_json(collected: &Collected, dry_run: bool) -> serde_json::Value {
    json!({
        "dry_run": dry_run,
        "records": collected.records,
        "records_removed": collected.records_removed,
        "records_live": collected.records_live,
        "blobs": collected.blobs,
        "blobs_removed": collected.blobs_removed,
        "bytes": collected.bytes,
        "bytes_removed": collected.bytes_removed,
    })
}

fn verify(args: &Verify) -> Result<ExitCode, Fail> {
    let cache = Cache::open(cache_folder(args.cache.as_deref())?)?;
    let alone = if args.repair { cache.try_lock()? } else { None };
    if args.repair && alone.is_none() {
        return Err(Fail::with_help("a run is using this cache", "wait for it to end, then call again"));
    }
    let verified = cache.verify(args.repair)?;
    cache.flush()?;
    crate::print(&match args.format {
        Format::Human => report(&verified, args.repair),
        Format::Json => format!("{}\n", report_json(&verified, args.repair)),
    })?;
    Ok(if verified.is_sound() || args.repair { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn report(verified: &Verified, repair: bool) -> String {
    let mut text = String::new();
    for id in &verified.bad_blobs {
        text.push_str(&format!("damaged     blob:{}\n", id.short()));
    }
    for (key, why) in &verified.bad_records {
        text.push_str(&format!("unreadable  record {}: {why}\n", key.short()));
    }
    for (key, stage, object) in &verified.incomplete {
        text.push_str(&format!("incomplete  record {} of `{stage}`: {object} is missing or damaged\n", key.short()));
    }
    text.push_str(&format!("{} records and {} blobs ({}) are sound", verified.records, verified.blobs, size(verified.bytes)));
    text.push_str(match (verified.is_sound(), repair) {
        (true, _) => "\n",
        (false, true) => "; what was not was removed, and the stages that made it will run again\n",
        (false, false) => "; `trestle cache verify --repair` removes what is not, and the stages that made it run again\n",
    });
    text
}

fn report_json(verified: &Verified, repair: bool) -> serde_json::Value {
    json!({
        "sound": verified.is_sound(),
        "repaired": repair && !verified.is_sound(),
        "records": verified.records,
        "blobs": verified.blobs,
        "bytes": verified.bytes,
        "bad_blobs": verified.bad_blobs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "bad_records": verified.bad_records.iter().map(|(key, why)| json!({"key": key.to_string(), "why": why})).collect::<Vec<_>>(),
        "incomplete": verified.incomplete.iter().map(|(key, stage, object)| json!({"key": key.to_string(), "stage": stage, "object": object.to_string()})).collect::<Vec<_>>(),
    })
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    let steps = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut step = 0;
    while value >= 1024.0 && step + 1 < steps.len() {
        value /= 1024.0;
        step += 1;
    }
    if step == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", steps[step]) }
}

/// A number with a unit, such as `20GiB` or `20G`; bytes without one.
fn bytes(text: &str) -> Result<u64, Fail> {
    let units = [("k", 1u64 << 10), ("m", 1 << 20), ("g", 1 << 30), ("t", 1 << 40)];
    let lower = text.trim().to_ascii_lowercase();
    let plain = lower.trim_end_matches('b').trim_end_matches('i');
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((plain.strip_suffix(unit)?, *factor))).unwrap_or((plain, 1));
    let number: f64 = number
        .trim()
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| Fail::with_help(format!("`{text}` is no size"), "write a number with a unit, such as 500MiB or 20GiB"))?;
    Ok((number * factor as f64) as u64)
}

/// A number of days, hours and so on, such as `30d` or `12h`.
fn age(text: &str) -> Result<Duration, Fail> {
    let units = [("d", 86_400.0), ("h", 3_600.0), ("m", 60.0), ("s", 1.0), ("w", 604_800.0)];
    let lower = text.trim().to_ascii_lowercase();
    let found = units.iter().find_map(|(unit, seconds)| Some((lower.strip_suffix(unit)?, *seconds)));
    let number = found.and_then(|(number, seconds)| Some(number.trim().parse::<f64>().ok()? * seconds));
    number
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| Fail::with_help(format!("`{text}` is no age"), "write a number with a unit, such as 30d or 12h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages() {
        let parsed = ["0", "12", "1k", "1.5MiB", "20 GB"].map(|text| bytes(text).ok());
        assert_eq!(parsed, [Some(0), Some(12), Some(1024), Some(1_572_864), Some(20 << 30)]);
        assert!(["", "x", "-1", "1q"].iter().all(|text| bytes(text).is_err()));
        assert_eq!(["1d", "1.5h"].map(|text| age(text).ok()), [Some(Duration::from_secs(86_400)), Some(Duration::from_secs(5_400))]);
        assert!(["1", "d", "-1d"].iter().all(|text| age(text).is_err()));
        assert_eq!([size(10), size(1536), size(3 << 30)], ["10 B", "1.5 KiB", "3.0 GiB"]);
    }
}
