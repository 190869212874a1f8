//! Sizes in bytes as people write and read them.

/// Reads `512MiB`, `4G`, `1.5GiB` or a plain number of bytes. `K`, `M`, `G` and `T` are powers of
/// 1024, with or without `iB` or `B`.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let refused = || format!("{text:?} is not a size: write for example 512MiB, 4GiB or 1.5G");
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(refused()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(refused);
    }
    let bytes = number.parse::<f64>().map_err(|_| refused())? * factor as f64;
    if bytes.is_finite() && bytes < 2f64.powi(63) {
        Ok(bytes as u64)
    } else {
        Err(refused())
    }
}

/// `1234567` as `1.2 MiB`.
pub fn show(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse("512MiB"), Ok(512 << 20));
        assert_eq!(parse(" 4 GiB "), Ok(4 << 30));
        assert_eq!(parse("1.5g"), Ok(3 << 29));
        assert_eq!(parse("100"), Ok(100));
        for bad in [
            "",
            "MiB",
            "-1",
            "4 parsecs",
            "1e30",
            "99999999999T",
            "1.2.3G",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shows_with_a_unit() {
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(1_234_567), "1.2 MiB");
        assert_eq!(show(5 << 40), "5.0 TiB");
    }
}
