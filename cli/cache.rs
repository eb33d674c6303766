//! `trestle cache gc` and `trestle cache verify`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use trestle_cache::{ActionKey, Bounds, Cache, Collected, Verified};
use trestle_engine::executor::end_below;
use trestle_engine::memo::Memo;
use trestle_engine::run::clear_shelf;
use trestle_engine::units;

use crate::args::{CacheCommand, Format, Gc, Verify};
use crate::fail::Fail;
use crate::lock;
use crate::project::{alone, cache_folder};
use crate::render::words::bytes;

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
        max_size: args.max_size.as_deref().map(size).transpose()?,
        max_age: args.max_age.as_deref().map(age).transpose()?,
        dry_run: args.dry_run,
    };
    let cache = Cache::open(&folder)?;
    let alone = alone(&cache)?;
    if !args.dry_run {
        clear_shelf(&cache);
    }
    let swept = if args.dry_run { 0 } else { cache.sweep_tmp(&mut |folder| end_below(folder))? };
    let mut live = live(&folder)?;
    for path in &args.keep {
        live.extend(lock::read(path)?.stages.values().map(|locked| locked.key));
    }
    let collected = cache.collect(&alone, &live, &bounds)?;
    crate::print(&match args.format {
        Format::Human => describe(&collected, args.dry_run, swept),
        Format::Json => format!("{}\n", as_json(&collected, args.dry_run)),
    })
}

/// Keys that some pipeline of this cache had in its last run. What is kept of a run may have been lost with the power: then nobody knows them.
fn live(folder: &Path) -> Result<BTreeSet<ActionKey>, Fail> {
    let entries = std::fs::read_dir(folder.join("plans")).into_iter().flatten().flatten();
    let mut keys = BTreeSet::new();
    for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "memo")) {
        let Some(memo) = Memo::load(&path) else {
            return Err(Fail::with_help(
                format!("it cannot be told what the last run of a pipeline used: {} is damaged, or of another version", path.display()),
                "run that pipeline once, which makes it anew; or remove the file if the pipeline is no more",
            ));
        };
        keys.extend(memo.keys.into_iter().flatten());
    }
    Ok(keys)
}

fn describe(collected: &Collected, dry_run: bool, swept: usize) -> String {
    let verb = if dry_run { "would remove" } else { "removed" };
    let mut text = format!(
        "{verb} {} of {} records and {} of {} blobs: {} of {}; {} records are in use and stay\n",
        collected.records_removed,
        collected.records,
        collected.blobs_removed,
        collected.blobs,
        bytes(collected.bytes_removed),
        bytes(collected.bytes),
        collected.records_live
    );
    if collected.kept_removed > 0 {
        text.push_str(&format!("{verb} {} checkpoint(s) that nobody needs any more\n", collected.kept_removed));
    }
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
        "checkpoints_removed": collected.kept_removed,
    })
}

fn verify(args: &Verify) -> Result<ExitCode, Fail> {
    let cache = Cache::open(cache_folder(args.cache.as_deref())?)?;
    let _alone = args.repair.then(|| alone(&cache)).transpose()?;
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
    text.push_str(&format!("{} records and {} blobs ({}) are sound", verified.records, verified.blobs, bytes(verified.bytes)));
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

/// A size of the command line.
fn size(text: &str) -> Result<u64, Fail> {
    units::bytes(text).ok_or_else(|| Fail::with_help(format!("`{text}` is no size"), "write a number with a unit, such as 500MiB or 20GiB"))
}

/// A time of the command line.
fn age(text: &str) -> Result<Duration, Fail> {
    units::duration(text).ok_or_else(|| Fail::with_help(format!("`{text}` is no age"), "write a number with a unit, such as 30d or 12h"))
}
