//! Reasons, times and counts in words.

use std::time::Duration;

use trestle_cache::{Change, Section};
use trestle_engine::compiled::Names;
use trestle_engine::event::{Failure, Summary};
use trestle_engine::pipeline::StageId;
use trestle_engine::plan::Reason;

/// Longest value that is shown whole.
const VALUE_CHARS: usize = 60;
/// Most reasons on one line.
const ON_A_LINE: usize = 3;

/// `1.2 s`, `3 min 4 s`, `120 ms`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        let whole = time.as_secs();
        if whole < 3600 { format!("{} min {} s", whole / 60, whole % 60) } else { format!("{} h {} min", whole / 3600, whole % 3600 / 60) }
    }
}

/// `12 s`, `5 min`, `3 h`, `2 d`: one unit is enough for how long ago something was.
pub fn age(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ ..3600 => format!("{} min", seconds / 60),
        seconds @ ..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// `2026-11-21 10:24 UTC`, of milliseconds since 1970.
pub fn date(unix_ms: u64) -> String {
    let minutes = unix_ms / 60_000;
    let (hour, minute) = (minutes / 60 % 24, minutes % 60);
    // Days to a date by eras of 400 years that begin in March, after Howard Hinnant, https://howardhinnant.github.io/date_algorithms.html
    let days = minutes / 1440 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// `12 B`, `3.4 kB`, `120 MB`: powers of 1000.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        // 999.95 would be shown as 1000.0.
        if value < 999.5 || unit == "TB" {
            return if unit == "B" || value >= 99.95 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    unreachable!("the last unit takes everything")
}

/// `1 stage`, `3 stages`.
pub fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What stands before an ingredient's name.
pub fn section_name(section: Section) -> &'static str {
    match section {
        Section::Stage => "stage",
        Section::Command => "command",
        Section::Param => "param",
        Section::Input => "input",
        Section::Output => "output",
        Section::Env => "env",
    }
}

/// A digest in full is for machines; people compare beginnings.
fn value(text: &str) -> String {
    let text = text.replace('\n', "⏎");
    let short = shorten_digests(&text);
    if short.chars().count() > VALUE_CHARS { format!("{}…", short.chars().take(VALUE_CHARS - 1).collect::<String>()) } else { short }
}

fn shorten_digests(text: &str) -> String {
    let words: Vec<String> = text
        .split(' ')
        .map(|word| match word.split_once(':') {
            Some((kind @ ("blob" | "blob+x" | "tree"), digest)) if digest.len() == 64 => format!("{kind}:{}", &digest[..12]),
            _ => word.to_owned(),
        })
        .collect();
    words.join(" ")
}

/// One change: `param lr 0.1 → 0.2`.
pub fn change(change: &Change) -> String {
    let name = format!("{} {}", section_name(change.section), change.name);
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => format!("{name} {} → {}", value(old), value(new)),
        (None, Some(new)) => format!("{name} is new: {}", value(new)),
        (Some(old), None) => format!("{name} is gone; it was {}", value(old)),
        (None, None) => name,
    }
}

fn lines(reasons: &[Reason]) -> Vec<String> {
    reasons
        .iter()
        .flat_map(|reason| match reason {
            Reason::Always => vec!["it says `cache: false`".to_owned()],
            Reason::New => vec!["it has not been run in this project".to_owned()],
            Reason::NoRecord => vec!["the record of its last run is gone".to_owned()],
            Reason::Changed { changes } => changes.iter().map(change).collect(),
            Reason::Output { output, health } => vec![format!("output `{output}`: {}", shorten_digests(health))],
        })
        .collect()
}

/// Reasons on one line.
pub fn reasons(reasons: &[Reason]) -> String {
    let all = lines(reasons);
    let shown = all.iter().take(ON_A_LINE).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > ON_A_LINE { format!("{shown}; and {} more", all.len() - ON_A_LINE) } else { shown }
}

/// Reasons, one a line.
pub fn reason_lines(reasons: &[Reason]) -> String {
    lines(reasons).into_iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// What a stage waits for.
pub fn waits(all: &Names, ids: &[StageId]) -> String {
    let names: Vec<&str> = ids.iter().take(ON_A_LINE).map(|&id| &all[id]).collect();
    let more = ids.len().saturating_sub(ON_A_LINE);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("reads from {}{rest}", names.join(", "))
}

/// Metrics for the end of a line: `top1 0.8123`.
pub fn metrics(metrics: &serde_json::Value) -> String {
    let Some(map) = metrics.as_object() else { return String::new() };
    let figure = |value: f64| if value.fract() == 0.0 && value.abs() < 1e9 { format!("{value:.0}") } else { format!("{value:.4}") };
    let shown: Vec<String> =
        map.iter().take(ON_A_LINE).map(|(name, value)| format!("{name} {}", figure(value.as_f64().unwrap_or(f64::NAN)))).collect();
    shown.join("  ")
}

/// A failure with the end of its log.
pub fn failure(stage: &str, failure: &Failure) -> String {
    let mut text = format!("failed  {stage}: {}", failure.error.message);
    if let Some(help) = &failure.error.help {
        text.push_str(&format!("\n        help: {help}"));
    }
    if !failure.log_tail.is_empty() {
        text.push_str("\n        the end of what it printed:");
        for line in failure.log_tail.lines() {
            text.push_str(&format!("\n        | {line}"));
        }
    }
    if let Some(log) = &failure.log {
        text.push_str(&format!("\n        all of it: {}", log.display()));
    }
    text
}

/// A failure after which the stage is tried again.
pub fn retry(stage: &str, failure: &Failure, pause: f64) -> String {
    format!("retry   {stage} in {}: {}", duration(Duration::from_secs_f64(pause)), failure.error.message)
}

/// The last line of a run.
pub fn summary(summary: &Summary) -> String {
    let mut parts = vec![format!("{} executed", summary.executed), format!("{} cached", summary.cached)];
    for (count, word) in [(summary.failed, "failed"), (summary.skipped, "skipped"), (summary.cancelled, "cancelled")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    format!("{} in {}", parts.join(", "), duration(Duration::from_secs_f64(summary.seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let say = |ms| duration(Duration::from_millis(ms));
        assert_eq!([say(12), say(1234), say(61_000), say(3_720_000)], ["12 ms", "1.2 s", "1 min 1 s", "1 h 2 min"]);
    }

    #[test]
    fn dates() {
        let say = |seconds: u64| date(seconds * 1000);
        assert_eq!(say(0), "1970-01-01 00:00 UTC");
        // `date -u -d … +%s` gave these.
        assert_eq!(say(951_782_340), "2000-02-28 23:59 UTC");
        assert_eq!([say(951_825_600), say(951_868_800)], ["2000-02-29 12:00 UTC", "2000-03-01 00:00 UTC"]);
        assert_eq!(say(1_795_257_845), "2026-11-21 10:44 UTC");
    }

    #[test]
    fn ages_and_sizes() {
        let say = |seconds| age(Duration::from_secs(seconds));
        assert_eq!([say(0), say(59), say(60), say(7_199), say(90_000)], ["0 s", "59 s", "1 min", "1 h", "1 d"]);
        let sizes = [0, 999, 1000, 99_949, 99_950, 999_499, 999_500, 4_000_000_000].map(bytes);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "4.0 GB"]);
    }

    #[test]
    fn digests_are_shortened() {
        let digest = "0123456789abcdef".repeat(4);
        assert_eq!(value(&format!("tree:{digest} at in/x")), "tree:0123456789ab at in/x");
    }
}
