use std::time::Instant;
use crate::{compare, conv::*, prg::*};
#[test]
fn speed() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
    let seed = Seed::from_bytes([1; 32]);
    let n = 1 << 18;
    for bits in [51, 19] {
        let t = Instant::now();
        let r0 = Prg::new(&seed, Purpose::Root, 0, 0).blocks(n);
        eprintln!("prg {:?} GB/s", n as f64 * 16e-9 / t.elapsed().as_secs_f64());
        let r1 = Prg::new(&seed, Purpose::Root, 0, 1).blocks(n);
        let mut a: Vec<u64> = Prg::new(&seed, Purpose::Mask, 0, 1).words(n);
        a.iter_mut().for_each(|a| *a &= (1 << bits) - 1);
        let t = Instant::now();
        let w = compare::generate(bits, &a, [&r0, &r1]);
        eprintln!("{bits} gen {} us", t.elapsed().as_secs_f64() * 1e6 / n as f64);
        for _ in 0..3 {
        let t = Instant::now();
        let s = compare::evaluate(0, bits, &w, &r0, &a);
        eprintln!("{bits} eval {} us {}", t.elapsed().as_secs_f64() * 1e6 / n as f64, s[0]);
        }
    }
    for (c, h) in [(64, 32), (128, 16), (256, 8), (512, 4)] {
        let shape = ConvShape { in_channels: c, out_channels: c, kernel: 3, stride: 1, padding: 1, height: h, width: h };
        let mut prg = Prg::new(&seed, Purpose::Mask, 0, 5);
        let k = Kernel::new(shape, &prg.words::<u64>(shape.weight_len()));
        let x = prg.words::<u64>(shape.input_len());
        let k32 = Kernel::new(shape, &prg.words::<u32>(shape.weight_len()));
        let x32 = prg.words::<u32>(shape.input_len());
        let mut best = [f64::MAX; 2];
        for _ in 0..5 {
            let mut y = vec![0; shape.output_len()];
            let t = Instant::now(); k.apply(&x, &mut y);
            best[0] = best[0].min(t.elapsed().as_secs_f64());
            let mut y = vec![0; shape.output_len()];
            let t = Instant::now(); k32.apply(&x32, &mut y);
            best[1] = best[1].min(t.elapsed().as_secs_f64());
        }
        eprintln!("{c} {h}: {:.2} ms {:.1} GMAC/s; u32 {:.1} GMAC/s", best[0]*1e3, shape.multiplications() as f64 / best[0] * 1e-9, shape.multiplications() as f64 / best[1] * 1e-9);
    }
    });
}
