use super::*;
use crate::{Isa, ThreadPool};

#[test]
fn wrong_lengths_and_shapes_are_errors() {
    let error = MatrixRef::new(WeightFormat::Q4_0, 2, 64, &[0; 71]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "2 rows and 64 columns of Q4_0 take 72 bytes, not 71"
    );
    let error = MatrixRef::new(WeightFormat::Q4_0, 2, 63, &[0; 72]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a matrix of 2 rows and 63 columns cannot be Q4_0"
    );
    let huge = usize::MAX & !255;
    for format in WeightFormat::ALL {
        assert!(MatrixRef::new(format, huge, huge, &[]).is_err());
        assert!(PanelsRef::new(format, huge, huge, &[]).is_err());
        assert!(PanelsRef::new(format, 16, 256, &[0; 3]).is_err());
        assert_eq!(panel_bytes(format, huge, huge), usize::MAX);
        assert!(MatrixRef::new(format, 0, 256, &[]).is_ok());
    }
}

#[test]
fn panels_take_little_more_than_the_file() {
    for format in WeightFormat::ALL {
        // In parts of a thousand.
        let most = match format {
            WeightFormat::Q3K | WeightFormat::MXFP4 => 1060,
            _ => 1030,
        };
        let file = format.row_bytes(2048).unwrap() * 2048;
        let panels = panel_bytes(format, 2048, 2048);
        assert!(panels >= file && panels * 1000 <= file * most, "{format}");
    }
}

#[test]
fn every_instruction_set_packs_the_same() {
    let pool = ThreadPool::new(2);
    for format in WeightFormat::ALL {
        for cols in [256, 512, 768] {
            let file: Vec<u8> = (0..format.row_bytes(cols).unwrap() * 35)
                .map(|i| (i * 31 + i / 251) as u8)
                .collect();
            let matrix = MatrixRef::new(format, 35, cols, &file).unwrap();
            let packed = |isa| {
                let mut out = vec![0x55; panel_bytes(format, 35, cols)];
                pack(Context { isa, pool: &pool }, matrix, &mut out).unwrap();
                out
            };
            for isa in Isa::available() {
                assert_eq!(packed(isa), packed(Isa::Scalar), "{isa} {format} {cols}");
            }
        }
    }
}
