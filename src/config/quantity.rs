//! Amounts as Kubernetes writes them: `100m`, `64Mi`, `1.5`, `2e3`.

use std::{fmt, str::FromStr};

/// An amount above zero. The text is kept, since the pod gets the text.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantity {
    text: String,
    value: f64,
}

impl Quantity {
    /// The amount, for comparisons.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// Whether the amount is a whole number of this unit. The API server refuses finer amounts of cpu (a
    /// thousandth), and takes `128m` of memory for an eighth of a byte.
    pub fn is_multiple_of(&self, unit: f64) -> bool {
        let count = self.value / unit;
        count.round() >= 1.0 && (count - count.round()).abs() < 1e-9 * count.abs().max(1.0)
    }
}

impl FromStr for Quantity {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "is not an amount such as 100m, 0.5, 64Mi or 1G";
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let number: f64 = number.parse().map_err(|_| FORM)?;
        let value = number * multiplier(suffix).ok_or(FORM)?;
        if value.is_finite() && value > 0.0 {
            Ok(Self { text: text.to_owned(), value })
        } else {
            Err("is not above zero")
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn multiplier(suffix: &str) -> Option<f64> {
    let binary = |power: i32| Some(1024f64.powi(power));
    let decimal = |power: i32| Some(10f64.powi(power));
    match suffix {
        "" => Some(1.0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => exponent.strip_prefix(['e', 'E']).and_then(|digits| decimal(digits.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("1", 1.0),
            ("100m", 0.1),
            ("0.5", 0.5),
            (".5", 0.5),
            ("64Mi", 67_108_864.0),
            ("1k", 1000.0),
            ("2e3", 2000.0),
            ("5E", 5e18),
            ("1E2", 100.0),
        ] {
            assert_eq!(text.parse::<Quantity>().expect(text).value(), value, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in
            ["", "m", "-1", "0", "0Mi", "1 Gi", "64MB", "64mi", "1e", "ten", "1..2", "inf", "NaN", "1e999"]
        {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn fractions_of_a_unit_are_noticed() {
        let is_multiple = |text: &str, unit| text.parse::<Quantity>().expect(text).is_multiple_of(unit);
        assert!(is_multiple("100m", 1e-3) && is_multiple("0.3", 1e-3) && is_multiple("64Mi", 1.0));
        assert!(!is_multiple("0.0001", 1e-3) && !is_multiple("128m", 1.0) && !is_multiple("1500m", 1.0));
    }
}
