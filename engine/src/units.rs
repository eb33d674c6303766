//! Sizes and times as people write them: a number and its unit.

use std::time::Duration;

/// A number and its unit.
fn measure(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let number: f64 = text[..split].parse().ok()?;
    Some((number, text[split..].trim()))
}

/// `2GiB` as bytes, and `0` as none at all; none if it is no size.
pub fn bytes(text: &str) -> Option<u64> {
    if text.trim() == "0" {
        return Some(0);
    }
    let (number, unit) = measure(text)?;
    let factor = match unit {
        "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number * factor;
    // Sizes beyond 2^53 bytes are no sizes of a memory.
    (0.0..9e15).contains(&bytes).then_some(bytes as u64)
}

/// `5m` as a time; none if it is none, or of more than a hundred years.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = measure(text)?;
    let factor = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    let seconds = number * factor;
    (seconds < 3.2e9).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(bytes("2GiB"), Some(2 << 30));
        assert_eq!(bytes("1.5 kB"), Some(1500));
        assert_eq!((bytes("0"), bytes("0B")), (Some(0), Some(0)));
        assert_eq!(duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        for bad in ["", "2", "GiB", "2G", "-1GiB", "1e99GiB", "1..2GB", "ä"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        for bad in ["5", "m", "5 weeks", "-5s", "1e9d", "99999999999d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
