//! Kubernetes quantities (`100m`, `4Gi`, `1e3`) as exact thousandths.
//! Source: apimachinery, pkg/api/resource; only what a node needs: parse, compare, round up.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use thiserror::Error;

/// A quantity that doesn't parse.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a quantity")]
pub struct Error(String);

/// A number in thousandths, rounded up: enough for CPUs (milli) and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Quantity {
    milli: i128,
}

impl Quantity {
    #[cfg(test)]
    pub fn from_milli(milli: i128) -> Self {
        Self { milli }
    }

    pub fn from_value(value: i128) -> Self {
        Self {
            milli: value * 1000,
        }
    }

    /// Parses a decimal number with an optional SI, binary or exponent suffix.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let fail = || Error(text.to_owned());
        let trimmed = text.trim();
        let digits_end = trimmed
            .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-'))
            .unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(digits_end);
        let (negative, number) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(fail());
        }
        let digits: String = format!("{whole}{fraction}");
        let mantissa: i128 = digits.parse().map_err(|_| fail())?;
        let mut numerator = mantissa;
        let mut denominator: i128 = pow(10, fraction.len() as u32).ok_or_else(fail)?;
        match suffix {
            "" => numerator = numerator.checked_mul(1000).ok_or_else(fail)?,
            "n" => denominator = denominator.checked_mul(1_000_000).ok_or_else(fail)?,
            "u" => denominator = denominator.checked_mul(1000).ok_or_else(fail)?,
            "m" => {}
            _ => {
                let factor = match suffix {
                    "k" => pow(10, 3),
                    "M" => pow(10, 6),
                    "G" => pow(10, 9),
                    "T" => pow(10, 12),
                    "P" => pow(10, 15),
                    "E" => pow(10, 18),
                    "Ki" => pow(2, 10),
                    "Mi" => pow(2, 20),
                    "Gi" => pow(2, 30),
                    "Ti" => pow(2, 40),
                    "Pi" => pow(2, 50),
                    "Ei" => pow(2, 60),
                    _ => exponent(suffix).and_then(|e| pow(10, e)),
                }
                .ok_or_else(fail)?;
                numerator = numerator
                    .checked_mul(factor)
                    .and_then(|n| n.checked_mul(1000))
                    .ok_or_else(fail)?;
            }
        }
        let milli = (numerator + denominator - 1) / denominator;
        Ok(Self {
            milli: if negative { -milli } else { milli },
        })
    }

    /// Thousandths (CPU: millicores).
    pub fn milli(self) -> i128 {
        self.milli
    }

    /// Whole units, rounded up (memory: bytes).
    pub fn value(self) -> i128 {
        (self.milli + 999).div_euclid(1000)
    }

    /// In units of `divisor`, rounded up (`resourceFieldRef`).
    pub fn divide_up(self, divisor: Quantity) -> i128 {
        let divisor = if divisor.milli == 0 {
            1000
        } else {
            divisor.milli
        };
        (self.milli + divisor - 1).div_euclid(divisor)
    }

    /// The shortest plain form: `2`, `1500m`.
    pub fn to_api(self) -> ApiQuantity {
        if self.milli % 1000 == 0 {
            ApiQuantity((self.milli / 1000).to_string())
        } else {
            ApiQuantity(format!("{}m", self.milli))
        }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            milli: self.milli.saturating_sub(other.milli),
        }
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        Quantity {
            milli: self.milli + other.milli,
        }
    }
}

fn pow(base: i128, exponent: u32) -> Option<i128> {
    base.checked_pow(exponent)
}

fn exponent(suffix: &str) -> Option<u32> {
    suffix
        .strip_prefix(['e', 'E'])
        .and_then(|rest| rest.trim_start_matches('+').parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milli(text: &str) -> i128 {
        Quantity::parse(text).expect(text).milli()
    }

    #[test]
    fn suffixes_scale_as_kubernetes_defines() {
        assert_eq!(milli("100m"), 100);
        assert_eq!(milli("0.5"), 500);
        assert_eq!(milli("4Gi"), (4_i128 << 30) * 1000);
        assert_eq!(milli("1e3"), 1_000_000);
        assert_eq!(milli("1k"), 1_000_000);
        assert_eq!(milli("1E"), 1_000_000_000_000_000_000_000);
    }

    #[test]
    fn fractions_below_a_thousandth_round_up() {
        assert_eq!(milli("1n"), 1);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(Quantity::parse("").is_err());
        assert!(Quantity::parse("4 GiB").is_err());
        assert!(Quantity::parse("1.2.3").is_err());
    }

    #[test]
    fn a_divisor_rounds_up() {
        let quantity = Quantity::parse("1500m").expect("valid");
        assert_eq!(quantity.divide_up(Quantity::from_value(1)), 2);
        assert_eq!(quantity.divide_up(Quantity::from_milli(1)), 1500);
    }
}
