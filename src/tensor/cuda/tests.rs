//! Devices as a whole. They run on the virtual device, or a real one; without either there is little to hold.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Storage, Tensor};

const GPU: Device = Device::Cuda(0);

/// `n` elements, all `value`.
fn upload(value: f32, n: usize) -> Tensor {
    Tensor::from_vec(vec![value; n], [n]).unwrap().to_device(GPU).unwrap()
}

/// The one value that all elements of `t` have.
fn value(t: &Tensor) -> f32 {
    let values = t.to_vec::<f32>().unwrap();
    assert!(values.iter().all(|v| *v == values[0]), "{values:?}");
    values[0]
}

/// `a + b`, by a kernel.
fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    add_past(a, b, 0)
}

/// As [`add`], for which the kernel is told of so many more elements than there are.
fn add_past(a: &Tensor, b: &Tensor, more: u64) -> Result<Tensor> {
    let mut y = Tensor::uninit(a.shape, DType::F32, GPU)?;
    let mut args = Args::new();
    let addresses =
        [args.address_mut("add", &mut y)?, args.address("add", a)?, args.address("add", b)?];
    for address in addresses {
        args.push(&address.to_ne_bytes())?;
    }
    args.push(bytemuck::bytes_of(&[a.len() as u64 + more, b.len() as u64]))?;
    args.launch("elementwise", "add_f32", LaunchConfig::new([8, 1], 64))?;
    Ok(y)
}

fn address(t: &Tensor) -> u64 {
    match &*t.storage {
        Storage::Cuda(buffer) => buffer.ptr(),
        Storage::Cpu(_) => panic!("not on a device"),
    }
}

fn is_capture_error<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Capture { .. }))
}

/// With neither driver nor kernels every request must end in an error, never in a panic.
#[test]
fn a_device_that_is_not_there_is_an_error() {
    let last = device::device_count().unwrap_or(0);
    let device = Device::Cuda(last);
    for error in [
        choose(&device.to_string()).map(drop).unwrap_err(),
        Buffer::uninit(last, 16).map(drop).unwrap_err(),
        Buffer::from_host(last, &[1, 2, 3]).map(drop).unwrap_err(),
        Stream::new(device).map(drop).unwrap_err(),
        Graph::capture(device, || Ok(())).map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Cuda(_) | Error::Argument { .. }), "{error}");
    }
    let error = Stream::new(Device::Cpu).map(drop).unwrap_err();
    assert!(error.to_string().contains("cpu"), "{error}");
}

#[test]
fn memory_keeps_what_it_is_given() {
    if !is_there_for_tests() {
        return;
    }
    for len in [0, 1, 255, 256, 70_000] {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut buffer = Buffer::from_host(0, &bytes).unwrap();
        let zeros = Buffer::zeroed(0, len).unwrap();
        let mut back = vec![7; len];
        buffer.read(0, &mut back).unwrap();
        assert_eq!(back, bytes);
        zeros.read(0, &mut back).unwrap();
        assert!(back.iter().all(|&b| b == 0));
        for outside in [
            buffer.read(0, &mut vec![0; len + 1]),
            buffer.write(1, &bytes),
            buffer.copy_from(0, &zeros, 1, len),
        ] {
            assert!(matches!(outside, Err(Error::Shape { .. })), "{outside:?}");
        }
        buffer.copy_from(len / 2, &zeros, 0, len - len / 2).unwrap();
        buffer.read(0, &mut back).unwrap();
        assert_eq!(back[..len / 2], bytes[..len / 2]);
        assert!(back[len / 2..].iter().all(|&b| b == 0));
    }
    let error = Buffer::uninit(0, isize::MAX as usize).err().unwrap();
    assert!(
        matches!(error, Error::OutOfMemory { asked, .. } if asked >= isize::MAX as u64),
        "{error}"
    );
}

/// A stream's kernels share their counters; another stream, and a graph, has its own. A larger number begins with zeros too.
#[test]
fn counters_belong_to_one_stream_or_graph() {
    if !is_there_for_tests() {
        return;
    }
    let counters = |n| Tensor::counters(n, GPU).unwrap();
    let zeros = |t: &Tensor| assert_eq!(t.to_vec::<u32>().unwrap(), vec![0; t.len()]);
    let few = counters(3);
    zeros(&few);
    assert_eq!(address(&few), address(&counters(1000)));
    let many = counters(100_000);
    zeros(&many);
    assert_ne!(address(&few), address(&many));
    assert_eq!(address(&many), address(&counters(3)));
    let other = Stream::new(GPU).unwrap().scope(|| counters(3));
    let graph = Graph::capture(GPU, || Ok([counters(3), counters(7)])).unwrap();
    let [first, second] = graph.outputs();
    assert_eq!(address(first), address(second));
    assert_eq!(graph.nodes(), 1);
    for own in [&other, first] {
        assert!([&few, &many].iter().all(|shared| address(shared) != address(own)));
    }
    assert_ne!(address(&other), address(first));
    assert!(matches!(Tensor::counters(3, Device::Cpu), Err(Error::Argument { .. })));
}

/// More than the ring holds, in large parts and in many small ones, each gone from the host at once.
#[test]
fn uploads_do_not_need_the_host_any_more() {
    if !is_there_for_tests() {
        return;
    }
    let mut bytes: Vec<u8> = (0..50_000_001).map(|i: u32| (i % 253) as u8).collect();
    let large = Buffer::from_host(0, &bytes).unwrap();
    bytes.fill(0);
    large.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(i, b)| *b == (i % 253) as u8));

    let mut part = vec![0; 70_001];
    let small: Vec<Buffer> = (0..600u32)
        .map(|i| {
            part.fill((i % 251) as u8);
            Buffer::from_host(0, &part).unwrap()
        })
        .collect();
    for (i, buffer) in small.iter().enumerate() {
        buffer.read(0, &mut part).unwrap();
        assert!(part.iter().all(|b| *b == (i % 251) as u8), "upload {i}");
    }
}

#[test]
fn assignments_cross_devices() {
    if !is_there_for_tests() {
        return;
    }
    let values =
        |from: f32| Tensor::from_vec((0..6).map(|i| from + i as f32).collect(), [2, 3]).unwrap();
    for (to, from) in
        [(Device::Cpu, Device::Cpu), (GPU, Device::Cpu), (Device::Cpu, GPU), (GPU, GPU)]
    {
        let mut t = values(0.0).to_device(to).unwrap().contiguous().unwrap();
        // Of storage that nobody shares; a view of a part of the other.
        let source = values(10.0).to_device(from).unwrap();
        let stacked = Tensor::from_vec((0..12).map(|i| i as f32).collect(), [4, 3]).unwrap();
        t.assign(&source).unwrap();
        assert_eq!(t.to_vec::<f32>().unwrap(), [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        t.assign(&stacked.to_device(from).unwrap().narrow(0, 1, 2).unwrap()).unwrap();
        assert_eq!(t.to_vec::<f32>().unwrap(), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "{from} to {to}");
        let wrong = t.assign(&source.reshape([3, 2]).unwrap());
        assert!(matches!(wrong, Err(Error::Shape { .. })));
        let view = t.clone();
        assert!(matches!(t.assign(&source), Err(Error::Value { .. })));
        drop(view);
        t.assign(&source).unwrap();
    }
}

/// The virtual device runs a stream's work when it is waited for and no sooner: without an event between the streams,
/// the second would read what was never written, or be overwritten by what comes late.
#[test]
fn a_stream_waits_for_what_another_wrote() {
    if !is_there_for_tests() {
        return;
    }
    let (first, second) = (Stream::new(GPU).unwrap(), Stream::new(GPU).unwrap());
    for n in [33, 5000] {
        let (one, two) = first.scope(|| (upload(1.0, n), upload(2.0, n)));
        let three = second.scope(|| add(&one, &two).unwrap());
        let six = first.scope(|| add(&three, &three).unwrap());
        // Written again, in a third stream, while the second may still read it.
        let mut one = one;
        let seven = second.scope(|| add(&six, &one).unwrap());
        one.assign(&two).unwrap();
        assert_eq!(value(&one), 2.0);
        assert_eq!(second.scope(|| value(&seven)), 7.0);
    }
    first.synchronize().unwrap();
}

/// Otherwise the first stream would write new values over those that the second has yet to read.
#[test]
fn memory_is_handed_out_behind_its_last_use() {
    if !is_there_for_tests() {
        return;
    }
    let (first, second) = (Stream::new(GPU).unwrap(), Stream::new(GPU).unwrap());
    let (one, two) = first.scope(|| (upload(1.0, 900), upload(2.0, 900)));
    let three = second.scope(|| add(&one, &two).unwrap());
    drop((one, two));
    let nine = first.scope(|| add(&upload(4.0, 900), &upload(5.0, 900)).unwrap());
    assert_eq!(first.scope(|| value(&nine)), 9.0);
    assert_eq!(second.scope(|| value(&three)), 3.0);
}

#[test]
fn scopes_nest_and_end() {
    if !is_there_for_tests() {
        return;
    }
    let same = |a: &Stream, b: &Stream| std::ptr::eq(a.queue(), b.queue());
    let current = || Stream::current(GPU).unwrap();
    let main = current();
    let (outer, inner) = (Stream::new(GPU).unwrap(), Stream::new(GPU).unwrap());
    assert!(!same(&main, &outer) && !same(&outer, &inner));
    outer.scope(|| {
        assert!(same(&current(), &outer));
        let panicked =
            catch_unwind(AssertUnwindSafe(|| inner.scope(|| panic!("inside of a scope"))));
        assert!(panicked.is_err());
        assert!(same(&current(), &outer));
        thread::scope(|s| s.spawn(|| assert!(same(&current(), &main))).join().unwrap());
    });
    assert!(same(&current(), &main));
    let queue = inner.queue();
    drop(inner);
    assert!(std::ptr::eq(Stream::new(GPU).unwrap().queue(), queue), "streams are used again");
}

#[test]
fn a_graph_is_replayed_on_new_inputs() {
    if !is_there_for_tests() {
        return;
    }
    let mut x = upload(1.0, 1000);
    let weight = upload(10.0, 1000);
    let mut graph = Graph::capture(GPU, || {
        let sum = add(&x, &weight)?;
        add(&sum, &sum)
    })
    .unwrap();
    assert!(
        matches!(graph.outputs().to_vec::<f32>(), Err(Error::Value { .. })),
        "not launched yet"
    );
    for (i, expected) in [22.0, 24.0, 26.0, 28.0].into_iter().enumerate() {
        assert_eq!(value(graph.launch().unwrap()), expected, "launch {i}");
        x.assign(&upload(i as f32 + 2.0, 1000)).unwrap();
    }
    // In another stream than its inputs and its readers.
    let (stream, writer) = (Stream::new(GPU).unwrap(), Stream::new(GPU).unwrap());
    for i in 0..3 {
        writer.scope(|| x.assign(&upload(i as f32, 1000)).unwrap());
        let y = stream.scope(|| graph.launch().unwrap().clone());
        assert_eq!(stream.scope(|| value(&y)), 2.0 * i as f32 + 20.0, "launch {i}");
        assert_eq!(value(&add(&y, &weight).unwrap()), 2.0 * i as f32 + 30.0, "launch {i}");
    }
}

#[test]
fn a_graph_keeps_its_memory_to_itself() {
    if !is_there_for_tests() {
        return;
    }
    let n = 700;
    let x = upload(3.0, n);
    let mut inside = Vec::new();
    let mut graph = Graph::capture(GPU, || {
        let six = add(&x, &x)?;
        let twelve = add(&six, &six)?;
        inside.extend([address(&six), address(&twelve)]);
        drop(six);
        let fifteen = add(&twelve, &x)?; // where the six was
        assert_eq!(address(&fifteen), inside[0]);
        let dropped_behind = add(&fifteen, &fifteen)?;
        inside.push(address(&dropped_behind));
        Ok(fifteen)
    })
    .unwrap();
    inside.push(address(&x));
    drop(x); // the graph still reads it
    for round in 0..3 {
        let others: Vec<Tensor> = (0..8).map(|i| upload(i as f32, n)).collect();
        assert!(others.iter().all(|t| !inside.contains(&address(t))), "handed out, round {round}");
        assert_eq!(value(graph.launch().unwrap()), 15.0, "round {round}");
        for (i, t) in others.iter().enumerate() {
            assert_eq!(value(t), i as f32, "overwritten by the graph, round {round}");
        }
    }
    // Its outputs outlive it.
    let output = graph.outputs().clone();
    drop(graph);
    let others: Vec<Tensor> = (0..8).map(|i| upload(i as f32, n)).collect();
    assert_eq!(value(&output), 15.0);
    drop((output, others));
}

#[test]
fn other_threads_launch_while_one_captures() {
    if !is_there_for_tests() {
        return;
    }
    let (x, shared) = (upload(1.0, 300), upload(5.0, 300));
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answered) = mpsc::channel::<f32>();
    thread::scope(|s| {
        let worker = &shared;
        s.spawn(move || {
            // The same stream that the capturing thread has outside of its capture.
            for () in asked {
                let y = add(&add(worker, &upload(2.0, 300)).unwrap(), worker).unwrap();
                answer.send(value(&y)).unwrap();
            }
        });
        for round in 0..3 {
            let mut graph = Graph::capture(GPU, || {
                let two = add(&x, &x)?;
                ask.send(()).unwrap();
                let seven = add(&two, &shared)?;
                assert_eq!(answered.recv().unwrap(), 12.0, "done during the capture");
                add(&seven, &seven)
            })
            .unwrap();
            for launch in 0..2 {
                assert_eq!(value(graph.launch().unwrap()), 14.0, "round {round}, launch {launch}");
            }
        }
        drop(ask);
    });

    // Two threads with streams of their own that launch, capture and drop without regard to each other.
    thread::scope(|s| {
        for t in 0..2 {
            let (x, shared) = (&x, &shared);
            s.spawn(move || {
                Stream::new(GPU).unwrap().scope(|| {
                    for i in 0..10 {
                        let own = upload((10 * t + i) as f32, 300);
                        let mut graph =
                            Graph::capture(GPU, || add(&add(&own, shared)?, x)).unwrap();
                        assert_eq!(value(graph.launch().unwrap()), (10 * t + i + 6) as f32);
                        assert_eq!(value(&add(&own, x).unwrap()), (10 * t + i + 1) as f32);
                    }
                });
            });
        }
    });
}

#[test]
fn what_a_graph_cannot_hold_is_an_error_and_passes() {
    if !is_there_for_tests() {
        return;
    }
    let x = upload(1.0, 64);
    let host = Tensor::from_vec(vec![1f32; 64], [64]).unwrap();
    let mut other = Graph::capture(GPU, || add(&x, &x)).unwrap();
    let mut stray = None;
    let mut into = upload(0.0, 64);
    type Attempt<'a> = (&'a str, Box<dyn FnMut() -> Result<()> + 'a>);
    let attempts: [Attempt; 6] = [
        ("download", Box::new(|| x.to_vec::<f32>().map(drop))),
        ("upload", Box::new(|| host.to_device(GPU).map(drop))),
        ("assignment", Box::new(|| into.assign(&host))),
        ("synchronisation", Box::new(|| Stream::current(GPU)?.synchronize())),
        ("another capture", Box::new(|| Graph::capture(GPU, || Ok(())).map(drop))),
        ("a launch", Box::new(|| other.launch().map(drop))),
    ];
    for (what, mut attempt) in attempts {
        let captured = Graph::capture(GPU, || {
            let two = add(&x, &x)?;
            stray = Some(two.clone());
            attempt()?;
            add(&two, &x)
        });
        assert!(is_capture_error(captured), "{what}");
        // The tensor of the failed capture never gets contents, the stream goes on.
        let stray = stray.take().unwrap();
        assert!(matches!(add(&stray, &x), Err(Error::Value { .. })), "after {what}");
        assert!(matches!(stray.to_vec::<f32>(), Err(Error::Value { .. })), "after {what}");
        assert_eq!(value(&add(&x, &x).unwrap()), 2.0, "after {what}");
    }

    // An error that the closure swallows does no harm.
    let mut graph = Graph::capture(GPU, || {
        assert!(is_capture_error(x.to_vec::<f32>()));
        add(&x, &x)
    })
    .unwrap();
    assert_eq!(value(graph.launch().unwrap()), 2.0);

    // A panic ends the capture as an error does.
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        Graph::capture(GPU, || -> Result<Tensor> {
            add(&x, &x)?;
            panic!("inside of a capture")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(value(&add(&x, &x).unwrap()), 2.0);

    // A capture's stream is its thread's, and has an end.
    let mut leaked = None;
    Graph::capture(GPU, || {
        let stream = Stream::current(GPU)?;
        thread::scope(|s| {
            let joined = s.spawn(|| is_capture_error(stream.scope(|| add(&x, &x)))).join();
            assert!(joined.unwrap());
        });
        leaked = Some(stream);
        Ok(())
    })
    .unwrap();
    let late = leaked.unwrap().scope(|| add(&x, &x));
    assert!(matches!(late, Err(Error::Value { .. })));
}

#[test]
fn a_profile_counts_the_launches_of_its_work() {
    if !is_there_for_tests() {
        return;
    }
    let x = upload(1.0, 10);
    let work = || {
        drop(Graph::capture(GPU, || add(&x, &x))?); // gathered, not launched
        add(&add(&x, &x)?, &x)
    };
    let layer = Range::new("unet.layer");
    let (y, launches) = profile(GPU, || {
        let _entered = layer.enter();
        let y = work()?;
        let _inner = Range::new("unet.layer.inner").enter();
        add(&y, &x)
    })
    .unwrap();
    assert_eq!(value(&y), 4.0);
    assert!(launches.iter().all(|l| l.kernel == "add_f32" && l.seconds >= 0.0), "{launches:?}");
    let ranges: Vec<_> = launches.iter().map(|l| l.range.as_ref().map(Range::name)).collect();
    assert_eq!(ranges, [Some("unet.layer"), Some("unet.layer"), Some("unet.layer.inner")]);
    assert_eq!(profile(GPU, || add(&x, &x)).unwrap().1[0].range, None, "ranges end");
    assert!(matches!(profile(GPU, || Err::<(), _>(Error::Interrupted)), Err(Error::Interrupted)));
    add(&x, &x).unwrap();
    assert_eq!(profile(GPU, || Ok(())).unwrap().1, []);
    assert!(matches!(profile(Device::Cpu, || Ok(())), Err(Error::Argument { .. })));
}

/// Set for tests that are run by others, and do nothing by themselves.
const INNER: &str = "NADIR_INNER_TEST";

fn is_run_by_another() -> bool {
    std::env::var_os(INNER).is_some()
}

/// Runs an ignored test of this file in a process of its own; `VGPU_FAIL_...` is read once a process.
fn in_own_process(test: &str, variables: &[(&str, String)]) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", &format!("tensor::cuda::tests::{test}")])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env(INNER, "1")
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.contains("1 passed"), "{test} {variables:?}: {said}");
    said.contains("vgpu: ")
}

fn is_virtual() -> bool {
    is_there_for_tests() && devices().unwrap()[0].is_virtual()
}

/// Everything that takes memory: uploads, kernels, a download, a graph.
fn work() -> Result<()> {
    let x = Tensor::from_vec(vec![1f32; 500], [500]).unwrap().to_device(GPU)?;
    let two = add(&x, &x)?;
    assert_eq!(two.to_vec::<f32>()?[7], 2.0);
    let mut graph = Graph::capture(GPU, || add(&add(&x, &two)?, &two))?;
    assert_eq!(graph.launch()?.to_vec::<f32>()?[499], 5.0);
    Ok(())
}

#[test]
fn out_of_memory_is_typed_and_passes() {
    if !is_virtual() {
        return;
    }
    let mut refused = 0;
    for n in 1..=12 {
        for pool in ["off", "on"] {
            let variables = [("VGPU_FAIL_ALLOC", n.to_string()), ("NADIR_POOL", pool.into())];
            refused += usize::from(in_own_process("one_allocation_fails", &variables));
        }
    }
    assert!(refused >= 16, "only {refused} of the allocations were refused");
    // Only what the pool holds is left.
    let variables = [("VGPU_FAIL_ALLOC", "3".into()), ("NADIR_POOL", "on".into())];
    assert!(in_own_process("the_pool_makes_room", &variables), "nothing was refused");
}

#[test]
#[ignore = "run by out_of_memory_is_typed_and_passes"]
fn one_allocation_fails() {
    if !is_run_by_another() {
        return;
    }
    let mut failures = 0;
    for _ in 0..4 {
        match work() {
            Ok(()) => {}
            Err(Error::OutOfMemory { device: GPU, total: Some(total), .. }) => {
                assert!(total > 1 << 30);
                failures += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(failures <= 1, "a request fails that has the memory it needs");
}

/// The first allocation is a buffer, the second locks host memory, the third is refused: the first makes room for it.
#[test]
#[ignore = "run by out_of_memory_is_typed_and_passes"]
fn the_pool_makes_room() {
    if !is_run_by_another() {
        return;
    }
    drop(upload(1.0, 100));
    assert_eq!(value(&upload(2.0, 100_000)), 2.0);
}

/// What a tool that checks accesses does not see: a tensor ends within an allocation.
#[test]
fn a_write_around_a_tensor_of_a_graph_is_found() {
    if is_virtual() {
        let variables = ["NADIR_POOL", "NADIR_SENTINELS"].map(|name| (name, "on".into()));
        in_own_process("sentinels_are_looked_at", &variables);
    }
}

#[test]
#[ignore = "run by a_write_around_a_tensor_of_a_graph_is_found"]
fn sentinels_are_looked_at() {
    if !is_run_by_another() {
        return;
    }
    // Far more than the kernel looks at, so that it reads what is there.
    let x = upload(1.0, 5000);
    let [five, four] = [500, 400].map(|n| x.narrow(0, 0, n).unwrap());
    let work = |more| {
        let two = add(&five, &five)?;
        let three = add_past(&four, &four, more)?;
        Ok((two, three))
    };
    let mut whole = Graph::capture(GPU, || work(0)).unwrap();
    for _ in 0..3 {
        let (two, three) = whole.launch().unwrap();
        assert_eq!((value(two), value(three)), (2.0, 2.0));
    }
    for more in [1, 100] {
        let mut graph = Graph::capture(GPU, || work(more)).unwrap();
        let error = graph.launch().map(drop).unwrap_err().to_string();
        let says = "wrote to byte 1 behind the end of slot 1 of 2 (1600 bytes)";
        assert!(error.contains(says), "{error}");
    }
    // The device is as it was.
    assert!(whole.launch().is_ok());
}

/// Without pools and graphs a tool sees what uses a tensor's memory after it.
#[test]
fn a_use_after_free_is_found() {
    if is_virtual() {
        let found = in_own_process("memory_is_used_after_free", &[("NADIR_POOL", "off".into())]);
        assert!(found, "the virtual device says nothing");
    }
}

#[test]
#[ignore = "run by a_use_after_free_is_found"]
fn memory_is_used_after_free() {
    if !is_run_by_another() {
        return;
    }
    let (x, gone) = (upload(1.0, 100), upload(2.0, 100));
    let mut y = Tensor::uninit([100], DType::F32, GPU).unwrap();
    let mut args = Args::new();
    let addresses = [args.address_mut("add", &mut y).unwrap(), address(&gone)];
    drop(gone);
    for address in [addresses[0], addresses[1], address(&x)] {
        args.push(&address.to_ne_bytes()).unwrap();
    }
    args.push(bytemuck::bytes_of(&[100u64, 100])).unwrap();
    args.launch("elementwise", "add_f32", LaunchConfig::new([8, 1], 64)).unwrap();
    assert!(matches!(y.to_vec::<f32>(), Err(Error::DeviceLost { device: GPU, .. })));
}

#[test]
fn a_driver_too_old_for_the_kernels_is_told_from_other_failures() {
    if is_virtual() {
        in_own_process("no_kernel_can_be_loaded", &[("VGPU_DRIVER", "12020".into())]);
    }
}

#[test]
#[ignore = "run by a_driver_too_old_for_the_kernels_is_told_from_other_failures"]
fn no_kernel_can_be_loaded() {
    if !is_run_by_another() {
        return;
    }
    let x = upload(1.0, 10);
    for _ in 0..2 {
        let Err(Error::Cuda(message)) = add(&x, &x) else { panic!("no error") };
        assert!(message.contains("the driver is one for CUDA 12.2"), "{message}");
        assert_eq!(value(&x), 1.0);
    }
    let (device, why) = choose("auto").unwrap();
    assert_eq!(device, Device::Cpu);
    assert!(why.contains("one for CUDA 12.2, and the kernels need CUDA 13"), "{why}");
}

/// Of a view only what lies between its first and its last element travels to the host.
#[test]
fn a_view_brings_no_more_than_it_shows() {
    if !is_there_for_tests() {
        return;
    }
    let rows = Tensor::from_vec((0..50_000).map(|i| i as f32).collect(), [1000, 50]).unwrap();
    let view = rows.to_device(GPU).unwrap().narrow(0, 10, 3).unwrap().narrow(1, 5, 2).unwrap();
    let host = view.copied_to(Device::Cpu).unwrap();
    let Storage::Cpu(buffer) = &*host.storage else { panic!("{host:?}") };
    assert_eq!(buffer.bytes().len(), (2 * 50 + 2) * 4);
    assert_eq!(view.to_vec::<f32>().unwrap(), [505.0, 506.0, 555.0, 556.0, 605.0, 606.0]);
    let none = view.narrow(0, 1, 0).unwrap();
    assert!(none.to_vec::<f32>().unwrap().is_empty());
}

#[test]
fn a_lost_device_says_so_from_then_on() {
    if is_virtual() {
        for n in 1..=3 {
            let variables = [("VGPU_FAIL_LAUNCH", n.to_string())];
            assert!(in_own_process("a_launch_fails", &variables), "launch {n}");
        }
    }
}

#[test]
#[ignore = "run by a_lost_device_says_so_from_then_on"]
fn a_launch_fails() {
    if !is_run_by_another() {
        return;
    }
    let lost = |result: Result<()>| matches!(result, Err(Error::DeviceLost { device: GPU, .. }));
    let (x, y, stream) = (upload(1.0, 10), upload(2.0, 10), Stream::new(GPU).unwrap());
    assert!(lost(work()));
    assert!(lost(work()));
    assert!(lost(x.to_vec::<f32>().map(drop)));
    assert!(lost(add(&x, &y).map(drop)));
    assert!(lost(Tensor::zeros([3], DType::F32, GPU).map(drop)));
    assert!(lost(Stream::current(GPU).unwrap().synchronize()));
    assert!(lost(stream.synchronize()));
    assert!(lost(Graph::capture(GPU, || Ok(())).map(drop)));
    drop((x, y));
}
