//! A moment as year, month, day, hour, minute and second, and its text by a strftime format: what a chat template may
//! ask for with `strftime_now`. Days are turned into dates by the proleptic Gregorian calendar (years count from 1
//! March, so that the leap day is the last of its year).

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in universal time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CivilTime {
    year: i64,
    /// From 1.
    month: usize,
    /// From 1.
    day: i64,
    /// From 1.
    day_of_year: i64,
    /// From Monday, 0.
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

/// This moment as `2026-11-23T22:07:45Z`: for records, never for what seed and data determine.
pub(crate) fn utc_now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = CivilTime::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX));
    now.format("%FT%TZ").unwrap_or_default()
}

impl CivilTime {
    /// The moment that lies `seconds` after 1970 began.
    pub(super) fn from_unix(seconds: i64) -> Self {
        // Years far from ours are of no use, and their arithmetic would overflow.
        let seconds = seconds.clamp(-62_135_596_800, 253_402_300_799);
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // 1 March of year 0 lies 719468 days before 1970; 146097 days are 400 years.
        let from_march_0 = days + 719_468;
        let (era, day) = (from_march_0.div_euclid(146_097), from_march_0.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year + year / 4 - year / 100);
        // From March on, months have 31, 30, 31, 30, 31 days again and again: 153 in five.
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
        let year = year + era * 400;
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before_month = if month > 2 { day_of_year - day + 1 + 59 + i64::from(is_leap) } else { 31 * (month - 1) };
        Self {
            year,
            month: usize::try_from(month).unwrap_or(1),
            day,
            day_of_year: before_month + day,
            // 1 January 1970 was a Thursday.
            weekday: usize::try_from((days + 3).rem_euclid(7)).unwrap_or(0),
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    /// The text by a strftime format, in the C locale.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            let mut directive = letters.next();
            let is_bare = directive == Some('-');
            if is_bare {
                directive = letters.next();
            }
            let directive = directive.ok_or("a time format ends in %")?;
            self.write(directive, is_bare, &mut text)?;
        }
        Ok(text)
    }

    fn write(self, directive: char, is_bare: bool, text: &mut String) -> Result<(), String> {
        let hour_of_12 = (self.hour + 11) % 12 + 1;
        let (month, weekday) = (MONTHS.get(self.month - 1).unwrap_or(&""), WEEKDAYS.get(self.weekday).unwrap_or(&""));
        let (number, width) = match directive {
            'Y' => (self.year, 1),
            'y' => (self.year % 100, 2),
            'm' => (self.month as i64, 2),
            'd' => (self.day, 2),
            'e' if is_bare => (self.day, 1),
            'j' => (self.day_of_year, 3),
            'H' => (self.hour, 2),
            'I' => (hour_of_12, 2),
            'M' => (self.minute, 2),
            'S' => (self.second, 2),
            'u' => (self.weekday as i64 + 1, 1),
            'w' => ((self.weekday as i64 + 1) % 7, 1),
            other => {
                let words = match other {
                    'A' => (*weekday).to_string(),
                    'a' => weekday.chars().take(3).collect(),
                    'B' => (*month).to_string(),
                    'b' | 'h' => month.chars().take(3).collect(),
                    'p' => if self.hour < 12 { "AM" } else { "PM" }.to_string(),
                    'e' => format!("{:2}", self.day),
                    'F' => self.format("%Y-%m-%d")?,
                    'T' => self.format("%H:%M:%S")?,
                    'R' => self.format("%H:%M")?,
                    'D' | 'x' => self.format("%m/%d/%y")?,
                    'X' => self.format("%H:%M:%S")?,
                    'c' => self.format("%a %b %e %H:%M:%S %Y")?,
                    'Z' => String::new(),
                    'z' => String::new(),
                    'n' => "\n".to_string(),
                    't' => "\t".to_string(),
                    '%' => "%".to_string(),
                    other => return Err(format!("the time format %{other} is not known")),
                };
                text.push_str(&words);
                return Ok(());
            }
        };
        let width = if is_bare { 1 } else { width };
        write!(text, "{number:0width$}").map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_the_calendar() {
        let text = |seconds| CivilTime::from_unix(seconds).format("%F %T %a %j").unwrap();
        assert_eq!(text(0), "1970-01-01 00:00:00 Thu 001");
        assert_eq!(text(951_782_399), "2000-02-28 23:59:59 Mon 059");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00 Tue 060");
        assert_eq!(text(1_735_603_200), "2024-12-31 00:00:00 Tue 366");
        assert_eq!(text(-1), "1969-12-31 23:59:59 Wed 365");
        assert_eq!(text(i64::MAX), "9999-12-31 23:59:59 Fri 365");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00 Mon 060");
    }

    #[test]
    fn formats_that_templates_use() {
        let now = CivilTime::from_unix(1_767_604_023);
        let text = |format| now.format(format).unwrap();
        assert_eq!(text("%d %b %Y"), "05 Jan 2026");
        assert_eq!(text("%A, %-d %B %y, %I:%M %p (%-I, %H, %e|)"), "Monday, 5 January 26, 09:07 AM (9, 09,  5|)");
        assert_eq!(text("100%%"), "100%");
        assert!(now.format("%Q").is_err() && now.format("%").is_err());
    }
}
