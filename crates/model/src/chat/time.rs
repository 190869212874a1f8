//! `strftime` for templates that print the date, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

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

struct Civil {
    year: i64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: i64,
    /// 0 is Sunday.
    weekday: usize,
    /// 1 to 366.
    year_day: i64,
    second_of_day: i64,
}

/// `format` with its `%` codes replaced by the parts of `time` in UTC. Codes that are not known stay as they are.
pub(super) fn strftime(format: &str, time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    };
    let civil = civil_from_seconds(seconds);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some(code) => out.push_str(&part(code, &civil)),
            None => out.push('%'),
        }
    }
    out
}

fn part(code: char, t: &Civil) -> String {
    let (hour, minute) = (t.second_of_day / 3600, t.second_of_day / 60 % 60);
    match code {
        'Y' => format!("{}", t.year),
        'y' => format!("{:02}", t.year.rem_euclid(100)),
        'm' => format!("{:02}", t.month),
        'd' => format!("{:02}", t.day),
        'e' => format!("{:2}", t.day),
        'j' => format!("{:03}", t.year_day),
        'B' => MONTHS[t.month - 1].into(),
        'b' | 'h' => MONTHS[t.month - 1][..3].into(),
        'A' => WEEKDAYS[t.weekday].into(),
        'a' => WEEKDAYS[t.weekday][..3].into(),
        'w' => format!("{}", t.weekday),
        'H' => format!("{hour:02}"),
        'I' => format!("{:02}", (hour + 11) % 12 + 1),
        'p' => (if hour < 12 { "AM" } else { "PM" }).into(),
        'M' => format!("{minute:02}"),
        'S' => format!("{:02}", t.second_of_day % 60),
        'F' => format!("{}-{:02}-{:02}", t.year, t.month, t.day),
        'T' => format!("{hour:02}:{minute:02}:{:02}", t.second_of_day % 60),
        'Z' => "UTC".into(),
        'z' => "+0000".into(),
        '%' => "%".into(),
        other => format!("%{other}"),
    }
}

/// Days and months from seconds since 1970, by counting eras of 400 years that begin in March
/// (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_from_seconds(seconds: i64) -> Civil {
    let days = seconds.div_euclid(86_400);
    let shifted = days + 719_468; // Days since 0000-03-01.
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let month = month as usize;
    Civil {
        year,
        month,
        day,
        weekday: (days + 4).rem_euclid(7) as usize,
        year_day: before[month - 1] + day + i64::from(leap && month > 2),
        second_of_day: seconds.rem_euclid(86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, format: &str) -> String {
        strftime(format, UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn known_dates() {
        assert_eq!(
            at(0, "%A %d %B %Y %H:%M:%S %j"),
            "Thursday 01 January 1970 00:00:00 001"
        );
        // 2000-02-29 is a leap day of a year divisible by 400.
        assert_eq!(at(951_782_400, "%a %F %j"), "Tue 2000-02-29 060");
        assert_eq!(at(951_868_800, "%F %j"), "2000-03-01 061");
        assert_eq!(
            at(1_722_036_645, "%d %b %Y %I:%M %p"),
            "26 Jul 2024 11:30 PM"
        );
        assert_eq!(at(4_107_542_399, "%F %T"), "2100-02-28 23:59:59");
        assert_eq!(at(4_107_542_400, "%F %y%% %q %"), "2100-03-01 00% %q %");
    }

    #[test]
    fn before_1970() {
        let time = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(strftime("%A %F %T", time), "Wednesday 1969-12-31 23:59:59");
    }
}
