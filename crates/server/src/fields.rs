//! The fields of a JSON body, each of the type that it should have or refused by its name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// A JSON object whose fields are asked for one by one; others are ignored, and null counts as left out.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// What stands before a field's name in errors, such as `stream_options.`.
    within: &'a str,
}

impl<'a> Fields<'a> {
    /// The fields of a whole body.
    pub fn of(body: &'a Value) -> Result<Self, ApiError> {
        let map = body
            .as_object()
            .ok_or_else(|| ApiError::invalid("the body must be a JSON object"))?;
        Ok(Self { map, within: "" })
    }

    /// The field, whatever it is.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// An error about the field.
    pub fn wrong(&self, name: &str, must: &str) -> ApiError {
        let name = format!("{}{name}", self.within);
        let message = format!("`{name}` must be {must}");
        ApiError::field(name, message)
    }

    /// An object.
    pub fn object(&self, name: &str, within: &'a str) -> Result<Option<Self>, ApiError> {
        self.value(name)
            .map(|v| {
                v.as_object()
                    .map(|map| Self { map, within })
                    .ok_or_else(|| self.wrong(name, "an object"))
            })
            .transpose()
    }

    /// A string.
    pub fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.value(name)
            .map(|v| v.as_str().ok_or_else(|| self.wrong(name, "a string")))
            .transpose()
    }

    /// A list.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.value(name)
            .map(|v| {
                v.as_array()
                    .map(Vec::as_slice)
                    .ok_or_else(|| self.wrong(name, "a list"))
            })
            .transpose()
    }

    /// True or false; false if left out.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        self.value(name).map_or(Ok(false), |v| {
            v.as_bool().ok_or_else(|| self.wrong(name, "true or false"))
        })
    }

    /// A whole number within bounds.
    pub fn integer(
        &self,
        name: &str,
        bounds: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let must = || {
            let (low, high) = (bounds.start(), bounds.end());
            match *high {
                u64::MAX => format!("a whole number from {low} up"),
                high => format!("a whole number from {low} to {high}"),
            }
        };
        self.value(name)
            .map(|v| {
                v.as_u64()
                    .filter(|n| bounds.contains(n))
                    .ok_or_else(|| self.wrong(name, &must()))
            })
            .transpose()
    }

    /// A number within bounds.
    pub fn number(&self, name: &str, bounds: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let must = || format!("a number from {} to {}", bounds.start(), bounds.end());
        self.value(name)
            .map(|v| {
                v.as_f64()
                    .filter(|n| bounds.contains(n))
                    .map(|n| n as f32)
                    .ok_or_else(|| self.wrong(name, &must()))
            })
            .transpose()
    }
}

/// Token ids, if `list` holds nothing else.
pub fn token_ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter()
        .map(|v| v.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect()
}

/// `4096`, `512MiB`, `1.5GiB`: bytes. `K`, `M`, `G` and `T` are powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift);
    }
    let bytes = number.parse::<f64>().ok()? * (1u64 << shift) as f64;
    (bytes < 2f64.powi(63)).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wrong_types_are_refused_by_name() {
        let body = json!({"a": "x", "b": 1, "c": null, "o": {"d": 2}});
        let fields = Fields::of(&body).unwrap();
        assert_eq!(
            fields.number("a", 0.0..=2.0).unwrap_err().message,
            "`a` must be a number from 0 to 2"
        );
        assert_eq!(fields.string("b").unwrap_err().param.as_deref(), Some("b"));
        assert_eq!(fields.string("c"), Ok(None));
        assert_eq!(fields.integer("b", 0..=9), Ok(Some(1)));
        assert!(fields.integer("b", 2..=9).is_err());
        let inner = fields.object("o", "o.").unwrap().unwrap();
        assert_eq!(inner.flag("d").unwrap_err().param.as_deref(), Some("o.d"));
    }

    #[test]
    fn reads_sizes() {
        assert_eq!(parse_size("2GiB"), Some(2 << 30));
        assert_eq!(parse_size("1.5m"), Some(3 << 19));
        assert_eq!(parse_size("17"), Some(17));
        for bad in ["", "x", "1 parsec", "99999999999T", "-1", "1e30"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
