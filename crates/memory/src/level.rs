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
