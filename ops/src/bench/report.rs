//! Figures: each a ratio of two times taken in one round, as a table or as JSON.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

/// What a ratio should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Aim {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Aim {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    /// What was measured.
    pub(super) name: String,
    /// The median over the rounds (or the one value).
    pub(super) value: f64,
    /// The aim, as text.
    pub(super) aim: String,
    /// Whether the value meets it.
    pub(super) met: bool,
    /// What ours is, with its unit.
    pub(super) ours: String,
    /// What it was compared with, with its unit.
    pub(super) compared_with: String,
    /// The value of each round.
    pub(super) rounds: Vec<f64>,
}

/// A rate: `count` things, ours and the baseline's time in each round, the slower of the two being
/// the longer. The figure is baseline ÷ ours: the share of the baseline's rate that ours reaches.
pub(super) fn rate(
    name: &str,
    aim: f64,
    count: u64,
    unit: &str,
    compared_with: &str,
    rounds: &[(Duration, Duration)],
) -> Figure {
    let ratios: Vec<f64> =
        rounds.iter().map(|(ours, base)| base.as_secs_f64() / ours.as_secs_f64()).collect();
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let per_second = |pick: fn(&(Duration, Duration)) -> Duration| {
        let seconds: Vec<f64> = rounds.iter().map(|round| pick(round).as_secs_f64()).collect();
        format!("{} {unit}/s", thousands(count as f64 / median(&seconds)))
    };
    let compared_with = format!("{compared_with}: {}", per_second(|round| round.1));
    let value = median(&ratios);
    let ours = per_second(|round| round.0);
    figure(name, value, Aim::AtLeast(aim), ours, compared_with, ratios)
}

/// A figure that is no rate.
pub(super) fn figure(
    name: &str,
    value: f64,
    aim: Aim,
    ours: String,
    compared_with: String,
    rounds: Vec<f64>,
) -> Figure {
    let (aim, met) = (aim.text(), aim.met(value));
    Figure { name: name.to_owned(), value, aim, met, ours, compared_with, rounds }
}

/// The middle value; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The report as a table for people.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["figure", "median", "aim", "", "ours", "compared with", "rounds"]);
    for figure in figures {
        let rounds: Vec<String> = figure.rounds.iter().map(|value| format!("{value:.2}")).collect();
        table.add_row([
            Cell::new(&figure.name),
            Cell::new(format!("{:.2}", figure.value)).set_alignment(CellAlignment::Right),
            Cell::new(&figure.aim),
            Cell::new(if figure.met { "met" } else { "missed" }),
            Cell::new(&figure.ours).set_alignment(CellAlignment::Right),
            Cell::new(&figure.compared_with),
            Cell::new(rounds.join(" ")),
        ]);
    }
    table.to_string()
}

/// `63,912`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_share_of_the_baseline_and_the_median_of_its_rounds() {
        let seconds = Duration::from_secs;
        let rounds = [(seconds(2), seconds(1)), (seconds(4), seconds(3)), (seconds(1), seconds(1))];
        let figure = rate("copy", 0.7, 1_234_000, "rows", "a bare loop", &rounds);
        assert_eq!(figure.value, 0.75);
        assert!(figure.met);
        assert_eq!(figure.ours, "617,000 rows/s");
        assert_eq!(figure.compared_with, "a bare loop: 1,234,000 rows/s");
    }
}
