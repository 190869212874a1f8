//! Instruction sets, chosen once at run time.

use std::fmt;
use std::str::FromStr;

/// An instruction set that kernels are written for.
///
/// One binary carries all that its architecture can have; [`Isa::best`] picks at run time. Every
/// product on quantized weights gives the same bits whichever is chosen, so forcing one is a
/// matter of speed (and of testing), never of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Portable Rust: the reference.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// [`Isa::Avx2`] plus the 256-bit `vpdpbusd` (AVX-VNNI).
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// [`Isa::Avx512`] plus the 512-bit `vpdpbusd` (AVX-512 VNNI).
    Avx512Vnni,
    /// AArch64 with the dot-product instructions (ARMv8.2 `dotprod`).
    Neon,
}

impl Isa {
    /// Every instruction set that kernels are written for, the slowest first.
    pub const ALL: [Isa; 6] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512,
        Isa::Avx512Vnni,
        Isa::Neon,
    ];

    /// The instruction sets of this machine, the fastest last; never empty.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Scalar)
    }

    /// Whether this machine (and this build's architecture) has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => has_avx2() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => has_avx512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => has_avx512() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns)] // which arms exist depends on the architecture
            _ => false,
        }
    }

    /// Whether this machine has it and AVX2 with it, for kernels that need no more.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn includes_avx2(self) -> bool {
        !matches!(self, Isa::Scalar | Isa::Neon) && self.is_available()
    }

    /// Whether this machine has it and NEON with it, for kernels that need no more.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn includes_neon(self) -> bool {
        self == Isa::Neon && self.is_available()
    }

    /// The name that [`FromStr`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no instruction set, or one that this machine lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaError {
    name: String,
    known: bool,
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.known {
            "is not available on this machine"
        } else {
            "is not an instruction set"
        };
        write!(f, "'{}' {why}; available:", self.name)?;
        for isa in Isa::available() {
            write!(f, " {isa}")?;
        }
        Ok(())
    }
}

impl std::error::Error for IsaError {}

impl FromStr for Isa {
    type Err = IsaError;

    /// Parses a name; an instruction set that this machine lacks is an error.
    fn from_str(name: &str) -> Result<Isa, IsaError> {
        let found = Isa::ALL.into_iter().find(|isa| isa.name() == name);
        match found {
            Some(isa) if isa.is_available() => Ok(isa),
            _ => Err(IsaError {
                name: name.to_owned(),
                known: found.is_some(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_for_what_this_machine_has() {
        for isa in Isa::available() {
            assert_eq!(isa.to_string().parse::<Isa>(), Ok(isa));
        }
    }

    #[test]
    fn an_absent_or_unknown_set_is_refused_with_the_choices() {
        let absent = Isa::ALL.into_iter().find(|isa| !isa.is_available());
        let absent = absent.expect("no machine has both AVX-512 and NEON");
        let message = absent.name().parse::<Isa>().unwrap_err().to_string();
        assert!(message.contains("not available") && message.contains("scalar"));
        assert!("mmx".parse::<Isa>().is_err());
    }

    #[test]
    fn best_is_available_and_scalar_always_is() {
        assert!(Isa::best().is_available());
        assert_eq!(Isa::available()[0], Isa::Scalar);
    }
}
