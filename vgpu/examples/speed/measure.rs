//! The measurements.

use std::time::Instant;

use vgpu::{Arguments, Checks, Config, Error, Gpu};

/// `y = x * x + x`, an element a thread.
const ELEMENTWISE: &str = "\
.version 7.0
.target sm_80
.address_size 64
.visible .entry elementwise(.param .u64 x, .param .u64 y, .param .u32 n) {
    .reg .b64 %rd<6>; .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .pred %p<2>;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    ld.param.u32 %r5, [n];
    setp.ge.u32 %p1, %r4, %r5;
    @%p1 bra done;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    mul.wide.u32 %rd3, %r4, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4];
    fma.rn.f32 %f2, %f1, %f1, %f1;
    st.global.f32 [%rd5], %f2;
done:
    ret;
}
";

/// Prints the figures with all checks, with some and with none.
pub fn run() -> Result<(), Error> {
    let but_warps = Checks { race_warp: false, ..Checks::ALL };
    let choices = [
        ("checks on", Checks::ALL),
        ("checks on, but races inside warps", but_warps),
        ("checks off", Checks::NONE),
    ];
    for (name, checks) in choices {
        println!("{name}");
        elementwise(checks)?;
        if let Some(path) = std::env::args().nth(1) {
            match std::fs::read_to_string(&path) {
                Ok(ptx) => gemm(checks, &ptx)?,
                Err(e) => eprintln!("{path}: {e}"),
            }
        }
    }
    Ok(())
}

/// The shortest of five runs, in seconds.
fn best(mut run: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn elementwise(checks: Checks) -> Result<(), Error> {
    let n = 1 << 20;
    let mut gpu = Gpu::new(Config { checks, threads: 1, ..Config::default() })?;
    let kernel = gpu.load(ELEMENTWISE)?.function("elementwise")?;
    let (x, y) = (gpu.upload(&vec![0.5f32; n])?, gpu.upload(&vec![0f32; n])?);
    let args = Arguments::new().pointer(x).pointer(y).int(n as i32);
    let seconds =
        best(|| gpu.launch(&kernel, [(n / 256) as u32, 1, 1], [256, 1, 1], 0, &args).map(|_| ()))?;
    println!("  elementwise, one core: {:.0} M lane operations/s", 17.0 * n as f64 / seconds / 1e6);
    Ok(())
}

fn gemm(checks: Checks, ptx: &str) -> Result<(), Error> {
    let n = 512;
    let mut gpu = Gpu::new(Config { checks, ..Config::default() })?;
    let kernel = gpu.load(ptx)?.function("gemm")?;
    let (a, b) = (gpu.upload(&vec![0x3f80u16; n * n])?, gpu.upload(&vec![0x3f80u16; n * n])?);
    let c = gpu.upload(&vec![0f32; n * n])?;
    let args =
        Arguments::new().pointer(a).pointer(b).pointer(c).int(n as i32).int(n as i32).int(n as i32);
    let seconds = best(|| gpu.launch(&kernel, [8, 8, 1], [128, 1, 1], 0, &args).map(|_| ()))?;
    println!(
        "  bf16 GEMM 512^3, all cores: {:.1} ms, {:.2} GFLOP/s",
        seconds * 1e3,
        2.0 * (n * n * n) as f64 / seconds / 1e9
    );
    Ok(())
}
