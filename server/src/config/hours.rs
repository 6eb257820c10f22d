//! Hours of the day in which something may begin: `01:00-05:00`, UTC.

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// From (inclusive) until (exclusive), in minutes since midnight UTC; it may go over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    from: u16,
    until: u16,
}

impl Hours {
    /// Reads `HH:MM-HH:MM`; `00:00-24:00` is the whole day.
    ///
    /// # Errors
    /// Anything else; the message says what may be written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let minutes = |text: &str| -> Option<u16> {
            let (hours, minutes) = text.split_once(':')?;
            let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            let (hours, minutes) =
                (digits(hours).then_some(hours)?, digits(minutes).then_some(minutes)?);
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            let all = hours * 60 + minutes;
            (minutes < 60 && all <= DAY).then_some(all)
        };
        let both =
            text.split_once('-').and_then(|(from, until)| Some((minutes(from)?, minutes(until)?)));
        match both {
            Some((from, until)) if from != until && from < DAY => Ok(Self { from, until }),
            _ => Err(format!(
                "{text:?} are no hours; write from and until in UTC, as \"01:00-05:00\" or \"00:00-24:00\""
            )),
        }
    }

    /// Whether a moment (milliseconds since 1970) is within them.
    #[must_use]
    pub fn hold_at(self, ms: i64) -> bool {
        let minute = ms.div_euclid(60_000).rem_euclid(i64::from(DAY));
        let (from, until) = (i64::from(self.from), i64::from(self.until));
        if from < until {
            (from..until).contains(&minute)
        } else {
            minute >= from || minute < until
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_hold_from_their_start_until_before_their_end_over_midnight_too() {
        let check = |text: &str, hour: i64, minute: i64, holds: bool| {
            let ms = (20_000 * 24 * 60 + hour * 60 + minute) * 60_000;
            assert_eq!(Hours::parse(text).unwrap().hold_at(ms), holds, "{text} {hour}:{minute}");
        };
        check("01:00-05:00", 0, 59, false);
        check("01:00-05:00", 1, 0, true);
        check("01:00-05:00", 4, 59, true);
        check("01:00-05:00", 5, 0, false);
        check("22:30-02:00", 22, 29, false);
        check("22:30-02:00", 23, 59, true);
        check("22:30-02:00", 1, 59, true);
        check("22:30-02:00", 2, 0, false);
        check("00:00-24:00", 0, 0, true);
        check("00:00-24:00", 23, 59, true);
    }

    #[test]
    fn what_are_no_hours_is_refused_with_what_may_be_written() {
        for bad in [
            "",
            "1-5",
            "01:00",
            "01:00-01:00",
            "25:00-26:00",
            "01:60-02:00",
            "24:00-01:00",
            "+1:00-02:00",
        ] {
            assert!(Hours::parse(bad).expect_err(bad).contains("01:00-05:00"), "{bad}");
        }
    }
}
