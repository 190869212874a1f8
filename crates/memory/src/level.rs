//! The levels at which a block may be held.

use std::fmt;

/// Where and how a block is held, from dear to cheap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Values as the model wrote them (f16 or bf16), in RAM.
    Hot = 0,
    /// Eight-bit values in RAM.
    Int8 = 1,
    /// Four-bit values in RAM.
    Int4 = 2,
    /// Entropy-coded in RAM: to be promoted before use.
    Packed = 3,
    /// In a segment file of this machine.
    Disk = 4,
    /// In a store shared with other machines.
    Remote = 5,
}

impl Level {
    /// Every level, from dear to cheap.
    pub const ALL: [Self; 6] = [
        Self::Hot,
        Self::Int8,
        Self::Int4,
        Self::Packed,
        Self::Disk,
        Self::Remote,
    ];

    /// Whether attention reads blocks of this level as they are.
    #[must_use]
    pub fn is_attendable(self) -> bool {
        matches!(self, Self::Hot | Self::Int8 | Self::Int4)
    }

    /// Whether values of this level are not those that the model wrote.
    #[must_use]
    pub fn is_lossy(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// Whether a block of this level takes bytes of RAM.
    #[must_use]
    pub fn is_in_ram(self) -> bool {
        !matches!(self, Self::Disk | Self::Remote)
    }

    /// Lower-case name, as it appears in messages and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Packed => "packed",
            Self::Disk => "disk",
            Self::Remote => "remote",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How low the blocks of a request may sink and still be attended to.
///
/// What is computed while attending to lossy blocks is itself no longer what exact blocks would have given,
/// so every quality has cached blocks of its own: see [`Namespace::with_quality`](crate::Namespace::with_quality).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum KvQuality {
    /// Keys and values stay as the model wrote them.
    #[default]
    Exact = 0,
    /// Down to int8.
    High = 1,
    /// Down to int8, and to int4 what nothing has used for a while.
    Balanced = 2,
    /// Down to int4.
    Small = 3,
}

impl KvQuality {
    /// Every quality, best first.
    pub const ALL: [Self; 4] = [Self::Exact, Self::High, Self::Balanced, Self::Small];

    /// The lowest level that blocks of this quality are attended to at; `is_cold`: nothing uses them now or
    /// has for a while.
    #[must_use]
    pub fn lowest(self, is_cold: bool) -> Level {
        match (self, is_cold) {
            (Self::Exact, _) => Level::Hot,
            (Self::High, _) | (Self::Balanced, false) => Level::Int8,
            (Self::Balanced, true) | (Self::Small, _) => Level::Int4,
        }
    }

    /// Lower-case name, as it is given on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::High => "high",
            Self::Balanced => "balanced",
            Self::Small => "small",
        }
    }

    /// The quality of a number in a stored record.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl fmt::Display for KvQuality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KvQuality {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|quality| quality.name() == name);
        found.ok_or_else(|| format!("{name:?} is none of exact, high, balanced and small"))
    }
}
