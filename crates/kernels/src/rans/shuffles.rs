//! Putting the bytes or words of some lanes together, and taking them apart again: shuffles of eight lanes by the set of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::*;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::*;

/// What a byte shuffle makes zero of.
const ZERO: u8 = 128;
/// Of each set of eight lanes, where each lane's byte stands among those of the set.
static EXPAND: [[u8; 8]; 256] = shuffles(false);
/// Of each set of eight lanes, their numbers at the end, in order.
static COMPRESS: [[u8; 8]; 256] = shuffles(true);

const fn shuffles(compress: bool) -> [[u8; 8]; 256] {
    let mut all = [[ZERO; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let first = 8 - (set as u8).count_ones() as usize;
        let (mut lane, mut found) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                if compress {
                    all[set][first + found] = lane as u8;
                } else {
                    all[set][lane] = found as u8;
                }
                found += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    all
}
