//! Any bytes as packed blocks: decoded the same by every instruction set, or refused.
//!
//! The first byte chooses the form, the second the head's size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neap_kernels::Isa;
use neap_kernels::kv::{KvFormat, KvLayout, max_packed_bytes, pack_int4, unpack_int4};
use neap_memory::codec::{BlockCodec, Packed};

fuzz_target!(|bytes: &[u8]| {
    let [which, size, body @ ..] = bytes else {
        return;
    };
    let head_dim = usize::from(size % 100) + 1;
    if which % 2 == 0 {
        let mut block = vec![0; 2 * head_dim];
        let _ = Packed.decode(body, &mut block);
        return;
    }
    let Ok(layout) = KvLayout::new(1, 2, head_dim) else {
        return;
    };
    let unpacked = |isa| {
        let mut block = vec![0; layout.block_bytes(KvFormat::Int4)];
        unpack_int4(isa, &layout, body, &mut block).map(|()| block)
    };
    let block = unpacked(Isa::Scalar);
    assert!(block == unpacked(Isa::best()));
    if let Ok(block) = block {
        let mut packed = vec![0; max_packed_bytes(&layout)];
        let len = pack_int4(Isa::best(), &layout, &block, &mut packed).unwrap();
        let mut again = vec![0; block.len()];
        unpack_int4(Isa::best(), &layout, &packed[..len], &mut again).unwrap();
        assert!(again == block);
    }
});
