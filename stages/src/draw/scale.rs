//! A linear axis with round ticks.

/// From values to pixels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    low: f64,
    step: f64,
    steps: usize,
    left: f64,
    width: f64,
}

impl Scale {
    /// An axis of about `wanted` steps of 1, 2 or 5 times a power of ten that covers `low..=high` (finite, `low <= high`).
    pub(super) fn covering(low: f64, high: f64, wanted: usize) -> Self {
        // One value alone gets room around it.
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
        let step = round_step((high - low) / wanted.max(1) as f64);
        // A value on a tick must not gain a step from rounding.
        let first = (low / step + 1e-9).floor();
        let last = (high / step - 1e-9).ceil();
        Self { low: first * step, step, steps: (last - first) as usize, left: 0.0, width: 1.0 }
    }

    /// The same axis over the pixels `left..=left + width`.
    pub(super) fn over(self, left: f64, width: f64) -> Self {
        Self { left, width, ..self }
    }

    /// The pixel of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        self.left + (value - self.low) / (self.step * self.steps as f64) * self.width
    }

    /// Each tick's value and text.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        let tick = |i: usize| self.low + self.step * i as f64;
        (0..=self.steps).map(|i| (tick(i), signed(tick(i), decimals))).collect()
    }

    /// The value at the left end.
    pub(super) fn start(&self) -> f64 {
        self.low
    }
}

/// A number with a true minus sign and no minus zero.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let zero = text.bytes().all(|b| matches!(b, b'0' | b'.'));
    if value < 0.0 && !zero { format!("−{text}") } else { text }
}

/// The smallest of 1, 2, 5, 10 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powi(step.log10().floor() as i32);
    [1.0, 2.0, 5.0].map(|m| m * power).into_iter().find(|round| *round >= step * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(low: f64, high: f64) -> Vec<String> {
        Scale::covering(low, high, 6).ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(ticks(0.0, 91.2), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(ticks(0.0, 100.0), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(ticks(79.3, 85.6), ["78", "80", "82", "84", "86"]);
        assert_eq!(ticks(-0.3, 0.2), ["−0.3", "−0.2", "−0.1", "0.0", "0.1", "0.2"]);
        assert_eq!(ticks(5.0, 5.0), ["4.4", "4.6", "4.8", "5.0", "5.2", "5.4", "5.6"]);
    }

    #[test]
    fn values_map_to_pixels() {
        let scale = Scale::covering(0.0, 100.0, 5).over(50.0, 200.0);
        assert_eq!([0.0, 50.0, 100.0].map(|v| scale.at(v)), [50.0, 150.0, 250.0]);
    }
}
