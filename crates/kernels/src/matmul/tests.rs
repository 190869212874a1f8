use proptest::prelude::*;

use super::reference::dot_row;
use super::*;
use crate::format::f32_to_f16;
use crate::matrix::{MatrixRef, PanelsRef, pack, panel_bytes};
use crate::{Isa, ThreadPool};

/// A small generator, so that a case is made from its seed alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Within ±1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Where the half-precision scales stand in a block.
fn halves(format: WeightFormat) -> &'static [usize] {
    match format {
        WeightFormat::F32 => &[],
        WeightFormat::F16 | WeightFormat::Q4_0 | WeightFormat::Q5_0 | WeightFormat::Q8_0 => &[0],
        WeightFormat::BF16 | WeightFormat::MXFP4 => &[],
        WeightFormat::IQ4NL | WeightFormat::IQ4XS => &[0],
        WeightFormat::Q4_1 | WeightFormat::Q5_1 | WeightFormat::Q4K | WeightFormat::Q5K => &[0, 2],
        WeightFormat::Q2K => &[80, 82],
        WeightFormat::Q3K => &[108],
        WeightFormat::Q6K => &[208],
    }
}

/// Every code and small scale occurs; all values are finite.
fn random_weights(format: WeightFormat, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = vec![0; format.row_bytes(cols).unwrap() * rows];
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        match format {
            WeightFormat::F32 => block.copy_from_slice(&random.signed().to_le_bytes()),
            WeightFormat::BF16 => block.copy_from_slice(&random.signed().to_le_bytes()[2..]),
            _ => block.iter_mut().for_each(|b| *b = random.next() as u8),
        }
        if format == WeightFormat::MXFP4 {
            block[0] = 110 + block[0] % 16; // powers of two around 2^-10
        }
        for at in halves(format) {
            let half = f32_to_f16(random.signed() * 0.03);
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    bytes
}

/// Values of very different magnitudes, some groups all zero.
fn random_activations(len: usize, random: &mut Random) -> Vec<f32> {
    let mut x: Vec<f32> = (0..len).map(|_| random.signed()).collect();
    for group in x.chunks_mut(32) {
        let kind = random.next() % 8;
        let scale = [0.0, 1e-20, 1e-3, 1.0, 1.0, 1.0, 30.0, 1e15][kind as usize];
        group.iter_mut().for_each(|x| *x *= scale);
        if kind == 4 {
            group[0] = 100.0; // an outlier
        }
    }
    x
}

struct Case {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    n: usize,
    weights: Vec<u8>,
    x: Vec<f32>,
}

impl Case {
    fn new(format: WeightFormat, rows: usize, cols: usize, n: usize, seed: u64) -> Self {
        let random = &mut Random(seed | 1);
        Case {
            format,
            rows,
            cols,
            n,
            weights: random_weights(format, rows, cols, random),
            x: random_activations(n * cols, random),
        }
    }

    fn matrix(&self) -> MatrixRef<'_> {
        MatrixRef::new(self.format, self.rows, self.cols, &self.weights).unwrap()
    }

    /// The product by the reference.
    fn expected(&self) -> Vec<f32> {
        let (matrix, cols) = (self.matrix(), self.cols);
        let row = |i: usize| &self.x[i * cols..][..cols];
        let outputs = |i| (0..self.rows).map(move |r| (i, r));
        let all = (0..self.n).flat_map(outputs);
        all.map(|(i, r)| dot_row(&matrix, r, row(i))).collect()
    }

    fn panels(&self, ctx: Context<'_>) -> Vec<u8> {
        let mut panels = vec![0xAA; panel_bytes(self.format, self.rows, self.cols)];
        pack(ctx, self.matrix(), &mut panels).unwrap();
        panels
    }

    fn product(&self, ctx: Context<'_>, weights: Weights<'_>) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.n * self.rows];
        let mut jobs = [MatmulJob {
            weights,
            out: &mut out,
        }];
        let mut scratch = MatmulScratch::new();
        matmul(ctx, &mut jobs, &self.x, self.n, &mut scratch).unwrap();
        let most = MatmulScratch::bytes_needed(self.n, self.cols, ctx.pool.threads());
        assert!(scratch.bytes() <= most, "{} {most}", scratch.bytes());
        out
    }

    /// Every way to the product gives the reference's bits.
    fn check(&self, isa: Isa, pool: &ThreadPool) {
        let ctx = Context { isa, pool };
        let expected = self.expected();
        let panels = self.panels(ctx);
        let panels = PanelsRef::new(self.format, self.rows, self.cols, &panels).unwrap();
        for weights in [Weights::Rows(self.matrix()), Weights::Panels(panels)] {
            let packed = matches!(weights, Weights::Panels(_));
            for (i, (out, expected)) in self.product(ctx, weights).iter().zip(&expected).enumerate()
            {
                let (row, output) = (i / self.rows, i % self.rows);
                let (format, rows, cols, n) = (self.format, self.rows, self.cols, self.n);
                assert!(
                    out.to_bits() == expected.to_bits() || out.is_nan() && expected.is_nan(),
                    "{isa} {format} {rows} x {cols} packed {packed}, row {row} of {n}, output {output}: {out} for {expected}"
                );
            }
        }
    }
}

/// Columns: a whole number of blocks, over more than one superblock now and then.
fn cols(format: WeightFormat, choice: usize) -> usize {
    match format.block_len() {
        1 => choice % 600 + 1,
        32 => (choice % 20 + 1) * 32,
        len => (choice % 3 + 1) * len,
    }
}

/// One test for each instruction set: random shapes against the reference, bit for bit.
macro_rules! against_reference {
    ($($name:ident: $isa:expr),*) => {$(
        #[test]
        fn $name() {
            if !$isa.is_available() {
                println!("{} is not available here: not tested", $isa);
                return;
            }
            let pools: Vec<_> = (1..=4).map(ThreadPool::new).collect();
            let shapes = (0..WeightFormat::ALL.len(), 1..70usize, 0..600usize, 1..40usize, any::<u64>(), 0..4usize);
            proptest!(ProptestConfig::with_cases(320), |((format, rows, choice, n, seed, threads) in shapes)| {
                let format = WeightFormat::ALL[format];
                // The reference is slow: a long product or many of them, not both.
                let n = if choice % 3 == 0 { n } else { n % 5 + 1 };
                Case::new(format, rows, cols(format, choice), n, seed).check($isa, &pools[threads]);
            });
        }
    )*};
}

against_reference! {
    scalar_gives_the_reference_bits: Isa::Scalar,
    avx2_gives_the_reference_bits: Isa::Avx2,
    avxvnni_gives_the_reference_bits: Isa::AvxVnni,
    avx512_gives_the_reference_bits: Isa::Avx512,
    avx512vnni_gives_the_reference_bits: Isa::Avx512Vnni,
    neon_gives_the_reference_bits: Isa::Neon
}

#[test]
fn extreme_codes_do_not_overflow() {
    let pool = ThreadPool::new(1);
    for format in WeightFormat::ALL.into_iter().filter(|f| !f.is_float()) {
        for byte in [0x00, 0x7F, 0x80, 0xFF] {
            for sign in [1.0, -1.0] {
                let mut case = Case::new(format, 16, 256, 2, 1);
                for block in case.weights.chunks_exact_mut(format.block_bytes()) {
                    block.fill(byte);
                    for at in halves(format) {
                        block[*at..at + 2].copy_from_slice(&f32_to_f16(1.0).to_le_bytes());
                    }
                }
                case.x.fill(sign);
                for isa in Isa::available() {
                    case.check(isa, &pool);
                }
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_stay_in_their_row() {
    let pool = ThreadPool::new(1);
    for format in [
        WeightFormat::Q4_0,
        WeightFormat::Q4K,
        WeightFormat::Q6K,
        WeightFormat::F16,
    ] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut case = Case::new(format, 16, 512, 3, 5);
            case.weights.iter_mut().for_each(|b| *b &= 0x3F); // no NaN among the weights
            case.x[512 + 300] = value;
            for isa in Isa::available() {
                let ctx = Context { isa, pool: &pool };
                let out = case.product(ctx, Weights::Rows(case.matrix()));
                assert!(
                    out[..16].iter().all(|v| v.is_finite()),
                    "{isa} {format} {value}"
                );
                assert!(
                    out[32..].iter().all(|v| v.is_finite()),
                    "{isa} {format} {value}"
                );
                if !value.is_finite() {
                    assert!(
                        out[16..32].iter().all(|v| !v.is_finite()),
                        "{isa} {format} {value}"
                    );
                }
            }
        }
    }
}

#[test]
fn hostile_weights_give_the_same_everywhere() {
    let pool = ThreadPool::new(1);
    for format in WeightFormat::ALL {
        let mut case = Case::new(format, 17, 256, 2, 9);
        let mut random = Random(77);
        case.weights
            .iter_mut()
            .for_each(|b| *b = random.next() as u8);
        for isa in Isa::available() {
            case.check(isa, &pool);
        }
    }
}

#[test]
fn rows_do_not_depend_on_company_or_threads() {
    let (pool, pools) = (ThreadPool::new(1), [2, 3, 4].map(ThreadPool::new));
    for format in [WeightFormat::Q4_0, WeightFormat::Q6K, WeightFormat::BF16] {
        let case = Case::new(format, 100, 768, 23, 3);
        for isa in Isa::available() {
            let ctx = Context { isa, pool: &pool };
            let together = case.product(ctx, Weights::Rows(case.matrix()));
            for i in 0..case.n {
                let alone = Case {
                    n: 1,
                    x: case.x[i * 768..][..768].to_vec(),
                    weights: case.weights.clone(),
                    ..case
                };
                let out = alone.product(ctx, Weights::Rows(case.matrix()));
                assert_eq!(out, together[i * 100..][..100], "{isa} {format} row {i}");
            }
            for pool in &pools {
                let out = case.product(Context { isa, pool }, Weights::Rows(case.matrix()));
                assert_eq!(out, together, "{isa} {format} {} threads", pool.threads());
            }
        }
    }
}

#[test]
fn more_rows_than_a_chunk_holds() {
    let pool = ThreadPool::new(2);
    for format in [WeightFormat::Q8_0, WeightFormat::F16] {
        Case::new(format, 19, 64, MAX_ROWS + 13, 11).check(Isa::best(), &pool);
    }
}

/// More panels than a group holds, with as many rows as are few and one more, on every instruction set.
#[test]
fn groups_of_panels_meet_few_and_many_rows() {
    let pool = ThreadPool::new(2);
    for isa in Isa::available() {
        let few = FEW_TILES * kernels(isa).few_tile;
        for format in [WeightFormat::Q4_0, WeightFormat::Q6K, WeightFormat::F16] {
            for n in [few - 1, few, few + 1] {
                Case::new(format, 275, 512, n, 17).check(isa, &pool);
            }
        }
    }
}

#[test]
fn jobs_of_all_formats_share_their_activations() {
    let pool = ThreadPool::new(3);
    for isa in Isa::available() {
        let ctx = Context { isa, pool: &pool };
        let cases = WeightFormat::ALL.map(|f| Case::new(f, 21 + f as usize, 512, 7, 13));
        let x = &cases[0].x;
        let mut outs = cases.each_ref().map(|c| vec![f32::NAN; c.n * c.rows]);
        let jobs = cases.iter().zip(&mut outs).map(|(case, out)| MatmulJob {
            weights: Weights::Rows(case.matrix()),
            out,
        });
        let mut jobs: Vec<_> = jobs.collect();
        matmul(ctx, &mut jobs, x, 7, &mut MatmulScratch::new()).unwrap();
        for (mut case, out) in cases.into_iter().zip(outs) {
            case.x
                .clone_from(&Case::new(WeightFormat::F32, 21, 512, 7, 13).x);
            assert_eq!(out, case.expected(), "{isa} {}", case.format);
        }
    }
}

/// Relative to the norms of the row of weights and of the activations, the product differs from
/// the exact product of the dequantized weights and the activations as they are by no more than
/// this for normal activations: what quantizing the activations costs.
const ACTIVATION_ERROR: f64 = 0.0012;
/// The same for float weights: rounding alone.
const ROUNDING_ERROR: f64 = 3e-7;

#[test]
fn error_against_exact_products_is_bounded() {
    let cols = 2048;
    for format in WeightFormat::ALL {
        let mut random = Random(99);
        let mut case = Case::new(format, 64, cols, 1, 99);
        let mut normal = || (0..12).map(|_| random.signed()).sum::<f32>() * 0.5;
        let values: Vec<f32> = (0..64 * cols).map(|_| normal()).collect();
        format.quantize(&values, &mut case.weights).unwrap();
        case.x = (0..cols).map(|_| normal()).collect();
        let matrix = case.matrix();
        let (mut worst, mut squares) = (0.0f64, 0.0);
        for row in 0..64 {
            let mut weights = vec![0.0; cols];
            matrix.dequantize_row(row, &mut weights);
            let pairs = || {
                weights
                    .iter()
                    .map(|w| f64::from(*w))
                    .zip(case.x.iter().map(|x| f64::from(*x)))
            };
            let exact: f64 = pairs().map(|(w, x)| w * x).sum();
            let norms: f64 =
                pairs().map(|(w, _)| w * w).sum::<f64>() * pairs().map(|(_, x)| x * x).sum::<f64>();
            let error = (f64::from(dot_row(&matrix, row, &case.x)) - exact).abs() / norms.sqrt();
            worst = worst.max(error);
            squares += error * error / 64.0;
        }
        let bound = if is_integer(format) {
            ACTIVATION_ERROR
        } else {
            ROUNDING_ERROR
        };
        println!("{format}: rms {:.2e}, worst {worst:.2e}", squares.sqrt());
        assert!(worst <= bound, "{format}: {worst:.2e}");
    }
}

#[test]
#[should_panic(expected = "the length of x")]
fn wrong_lengths_are_refused() {
    let case = Case::new(WeightFormat::Q4_0, 16, 64, 2, 1);
    let mut out = vec![0.0; 32];
    let weights = Weights::Rows(case.matrix());
    let mut jobs = [MatmulJob {
        weights,
        out: &mut out,
    }];
    let pool = ThreadPool::new(1);
    let ctx = Context {
        isa: Isa::Scalar,
        pool: &pool,
    };
    let _ = matmul(ctx, &mut jobs, &case.x[1..], 2, &mut MatmulScratch::new());
}

proptest! {
    #[test]
    fn pieces_cover_all_panels_once(
        panels in prop::collection::vec(0..600usize, 0..5),
        threads in 1..9usize,
        least in 1..20usize,
        step in 1..3usize,
    ) {
        let pieces = cut(&panels, threads, least, step);
        let mut next = vec![0; panels.len()];
        for piece in pieces {
            prop_assert_eq!(piece.first, next[piece.job]);
            prop_assert!(piece.first % step == 0 && piece.first < piece.last);
            next[piece.job] = piece.last;
        }
        prop_assert_eq!(next, panels);
    }

    #[test]
    fn tiles_cover_all_rows_once(n in 1..600usize, width in prop::sample::select(vec![3usize, 8]), size in 1..20usize) {
        let tiles = Tiles::new(n, width);
        prop_assert_eq!(tiles.rows(), n);
        let mut next = 0;
        for (row, width) in (0..).map_while(|i| tiles.tile(i)) {
            prop_assert_eq!(row, next);
            next += width;
        }
        prop_assert_eq!(next, n);
        // The parts of a chunk are made of the same tiles.
        let mut next = 0;
        for part in 0..tiles.full.div_ceil(size).max(1) {
            let (row, tiles) = tiles.part(part, size);
            prop_assert_eq!(row, next);
            next += tiles.rows();
        }
        prop_assert_eq!(next, n);
    }
}
