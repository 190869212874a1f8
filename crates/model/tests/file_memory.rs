//! A hostile file must not cost more memory than its own length has earned.

use std::alloc::System;

use neap_model::gguf::GgufFile;
use neap_model::safetensors::SafetensorsFiles;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that may be allocated, one after the other, for each byte of a file: an empty array in an array takes 12
/// bytes in a file and 56 in memory, and growing a list copies it.
const FACTOR: usize = 16;
const FIXED_BYTES: usize = 16 * 1024;

/// Runs `read` and checks all that it allocated, whether or not it was freed again.
fn check(name: &str, bytes: Vec<u8>, read: impl FnOnce(Vec<u8>) -> bool) {
    let len = bytes.len();
    let region = Region::new(ALLOCATOR);
    read(bytes);
    let change = region.change();
    let allocated = change.bytes_allocated + change.bytes_reallocated.max(0) as usize;
    let most = FIXED_BYTES + FACTOR * len;
    assert!(
        allocated <= most,
        "{name}: {allocated} bytes for a file of {len}"
    );
}

fn gguf(tensors: u64, entries: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes
}

fn push(bytes: &mut Vec<u8>, numbers: &[u64]) {
    numbers
        .iter()
        .for_each(|number| bytes.extend(number.to_le_bytes()));
}

/// A metadata entry "key" that is an array of `element` types with a count.
fn array(element: u32, count: u64) -> Vec<u8> {
    let mut bytes = gguf(0, 1);
    push(&mut bytes, &[3]);
    bytes.extend(b"key");
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(element.to_le_bytes());
    push(&mut bytes, &[count]);
    bytes
}

/// One test, so that no other allocates at the same time.
#[test]
fn memory_is_earned() {
    let read = |bytes| GgufFile::from_vec("m", bytes).is_ok();
    for shift in 0..64 {
        let count = 1u64 << shift;
        check("tensors", gguf(count, 0), read);
        check("entries", gguf(0, count), read);
        for padding in [0, 100_000] {
            let padded = |mut bytes: Vec<u8>| {
                bytes.resize(bytes.len() + padding, 0);
                bytes
            };
            check("tensors", padded(gguf(count, 0)), read);
            check("entries", padded(gguf(0, count)), read);
            for element in 0..13 {
                check("array", padded(array(element, count)), read);
            }
        }
    }
    // As many empty arrays in an array as there is room for.
    let mut nested = array(9, 50_000);
    (0..50_000).for_each(|_| nested.extend([0; 12]));
    check("nested", nested, read);
    // As many tensors as there is room for: one byte of name and of data each.
    let mut tensors = gguf(200, 0);
    for name in 0..200u8 {
        push(&mut tensors, &[1]);
        tensors.push(name & 0x7f);
        tensors.extend(1u32.to_le_bytes());
        push(&mut tensors, &[1]);
        tensors.extend(0u32.to_le_bytes());
        push(&mut tensors, &[32 * u64::from(name)]);
    }
    check("tensors", tensors, read);

    let read = |bytes| SafetensorsFiles::from_vec("m", bytes).is_ok();
    for shift in 0..64 {
        let mut bytes = (1u64 << shift).to_le_bytes().to_vec();
        bytes.extend([b' '; 1000]);
        check("header length", bytes, read);
    }
    let zeros = format!(
        r#"{{"w":{{"dtype":"F32","data_offsets":[0,0],"shape":[{}0]}}}}"#,
        "0,".repeat(50_000)
    );
    let mut bytes = (zeros.len() as u64).to_le_bytes().to_vec();
    bytes.extend(zeros.as_bytes());
    check("shape", bytes, read);
}
