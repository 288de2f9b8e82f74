//! The engine without a device: what is taken, promised, begun and let go.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

const SIZE: Size = (64, 64);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One that is ready. A step takes 10 ms for one picture and 20 for two, 5 to decode one.
fn engine(batch: usize, limit: usize) -> Arc<Engine> {
    let engine = Engine::new(batch, limit);
    {
        let pace = &mut engine.lock().pace;
        pace.stepped(SIZE, 1, ms(10));
        pace.stepped(SIZE, 2, ms(20));
        pace.finished(SIZE, ms(5));
    }
    engine.set_state(State::Ready);
    Arc::new(engine)
}

/// Alone it takes 10 ms each evaluation, and 5.
fn picture(evaluations: usize) -> Work {
    Work::Picture { request: Box::default(), size: SIZE, evaluations, preview: false }
}

/// A task, and what is heard of it.
struct Asked {
    ticket: Ticket,
    cancel: Cancel,
    news: UnboundedReceiver<News>,
}

impl Asked {
    fn failure(&mut self) -> Failure {
        match self.news.try_recv().unwrap().what {
            What::Failed(failure) => failure,
            _ => panic!("no failure"),
        }
    }
}

fn ask(
    engine: &Arc<Engine>,
    priority: Priority,
    deadline: Option<u64>,
    works: Vec<Work>,
) -> Result<Asked, Refusal> {
    let (to, news) = unbounded_channel();
    let (client, cancel) = (Client("a".into()), Cancel::default());
    let ticket = engine.submit(&client, priority, deadline.map(ms), works, &cancel, &to)?;
    Ok(Asked { ticket, cancel, news })
}

fn waiting(engine: &Arc<Engine>, priority: Priority, evaluations: usize) -> Asked {
    ask(engine, priority, None, vec![picture(evaluations)]).ok().unwrap()
}

/// Tasks that are begun now.
fn begun(engine: &Engine) -> Vec<u64> {
    engine.next().unwrap().iter().map(|unit| unit.task).collect()
}

use Priority::{Batch, Interactive};

#[test]
fn nothing_is_taken_before_the_model_is_there_or_when_the_end_is_near() {
    let engine = engine(1, 8);
    for (state, refusal) in [
        (State::Loading, Some(Refusal::Loading)),
        (State::Ready, None),
        (State::Draining, Some(Refusal::Draining)),
        (State::Stopped, Some(Refusal::Draining)),
    ] {
        engine.set_state(state);
        assert_eq!(ask(&engine, Interactive, None, vec![picture(1)]).err(), refusal, "{state:?}");
    }
}

#[test]
fn all_of_a_task_wait_or_none() {
    let engine = engine(1, 3);
    let many = |n: usize| (0..n).map(|_| picture(200)).collect();
    let refused = ask(&engine, Interactive, None, many(4)).err();
    assert_eq!(refused, Some(Refusal::TooMany { limit: 3 }));
    let _two = ask(&engine, Interactive, None, many(2)).ok().unwrap();
    // 2 x (200 x 10 + 5) ms are before it.
    let refused = ask(&engine, Interactive, None, many(2)).err();
    assert_eq!(refused, Some(Refusal::Full(ms(4010))));
    assert_eq!(engine.load(), (2, 0));
    ask(&engine, Interactive, None, many(1)).ok().unwrap();
}

#[test]
fn a_deadline_is_held_against_what_comes_before() {
    let engine = engine(1, 8);
    let late = |priority, deadline| {
        let asked = ask(&engine, priority, Some(deadline), vec![picture(10)]);
        asked.err().map(|refusal| match refusal {
            Refusal::Late { needed } => needed.as_millis(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(late(Interactive, 104), Some(105));
    assert_eq!(late(Interactive, 105), None);
    // Dropped tickets have left the queue: now one stays.
    let _first = waiting(&engine, Batch, 100);
    assert_eq!(late(Batch, 1109), Some(1110));
    assert_eq!(late(Batch, 1110), None);
    // It does not wait for what others need not wait for.
    assert_eq!(late(Interactive, 105), None);
    // What has begun counts as well.
    assert_eq!(begun(&engine).len(), 1);
    assert_eq!(late(Batch, 1109), Some(1110));
}

#[test]
fn the_last_of_several_runs_in_company() {
    let engine = engine(2, 8);
    let works = || vec![picture(10), picture(10)];
    let refused = ask(&engine, Interactive, Some(204), works()).err();
    assert_eq!(refused, Some(Refusal::Late { needed: ms(210) }));
    assert!(ask(&engine, Interactive, Some(210), works()).is_ok());
    // One that comes to another runs beside it: 10 x 20 + 5 ms behind the 10 + 5 of the first.
    let _first = waiting(&engine, Interactive, 1);
    assert_eq!(begun(&engine).len(), 1);
    let refused = ask(&engine, Interactive, Some(219), vec![picture(10)]).err();
    assert_eq!(refused, Some(Refusal::Late { needed: ms(220) }));
}

#[test]
fn who_is_waited_for_begins_beside_those_who_are_not() {
    let engine = engine(1, 8);
    let batch = waiting(&engine, Batch, 5);
    assert_eq!(begun(&engine), [batch.ticket.task]);
    let first = waiting(&engine, Interactive, 5);
    let second = waiting(&engine, Interactive, 5);
    assert_eq!(begun(&engine), [first.ticket.task]);
    // Its own kind has a place for one.
    assert_eq!(begun(&engine), [0u64; 0]);
    assert_eq!(engine.load(), (1, 2));
    engine.lock().flights.retain(|flight| flight.task != first.ticket.task);
    assert_eq!(begun(&engine), [second.ticket.task]);
}

#[test]
fn what_was_promised_a_time_is_not_delayed() {
    for (deadline, joins) in [(None, true), (Some(150), false), (Some(600_000), true)] {
        let engine = engine(2, 8);
        let _promised = ask(&engine, Interactive, deadline, vec![picture(10)]).ok().unwrap();
        assert_eq!(begun(&engine).len(), 1);
        // Together they would take 10 x 20 + 5 ms.
        let _other = waiting(&engine, Interactive, 1);
        assert_eq!(begun(&engine).len(), usize::from(joins), "{deadline:?}");
    }
}

#[test]
fn what_cannot_be_in_time_any_more_is_let_go() {
    let engine = engine(1, 8);
    let mut asked = ask(&engine, Interactive, Some(110), vec![picture(10)]).ok().unwrap();
    engine.lock().expire();
    assert_eq!(engine.load(), (1, 0));
    for _ in 0..64 {
        engine.lock().pace.stepped(SIZE, 1, ms(100));
    }
    engine.lock().expire();
    assert_eq!(engine.load(), (0, 0));
    assert!(matches!(asked.failure(), Failure::Late));
    // The worker lets go of it before it looks for what to begin.
    let mut late = ask(&engine, Interactive, Some(2000), vec![picture(10)]).ok().unwrap();
    let _other = waiting(&engine, Interactive, 1);
    for _ in 0..64 {
        engine.lock().pace.stepped(SIZE, 1, ms(1000));
    }
    assert_eq!(begun(&engine).len(), 1);
    assert!(matches!(late.failure(), Failure::Late));
}

#[test]
fn work_goes_with_those_who_wait_for_it() {
    let engine = engine(1, 8);
    // 1. a ticket that is dropped
    let Asked { ticket, cancel, mut news } = waiting(&engine, Interactive, 5);
    drop(ticket);
    assert!(cancel.is_cancelled() && engine.load() == (0, 0));
    assert!(matches!(news.try_recv().unwrap().what, What::Failed(Failure::Cancelled)));
    // 2. one that is kept, until it is cancelled
    let Asked { ticket, cancel, mut news } = waiting(&engine, Interactive, 5);
    let other = waiting(&engine, Interactive, 5);
    let canceller = ticket.keep();
    assert!(!cancel.is_cancelled() && engine.load() == (2, 0));
    canceller.cancel();
    assert!(cancel.is_cancelled() && engine.load() == (1, 0));
    assert!(matches!(news.try_recv().unwrap().what, What::Failed(Failure::Cancelled)));
    // 3. a switch that was turned elsewhere
    let mut third = waiting(&engine, Interactive, 5);
    third.cancel.cancel();
    engine.sweep();
    assert_eq!(engine.load(), (1, 0));
    assert!(matches!(third.failure(), Failure::Cancelled));
    assert!(!other.cancel.is_cancelled());
}

#[test]
fn a_server_that_stops_hands_back_what_waits() {
    let engine = engine(1, 8);
    let mut asked = waiting(&engine, Interactive, 5);
    engine.set_state(State::Stopped);
    assert!(engine.next().is_none());
    assert!(matches!(asked.failure(), Failure::HandedBack));
    assert_eq!(engine.load(), (0, 0));
}

#[test]
fn those_who_wait_hear_of_their_place() {
    let engine = engine(1, 8);
    let _first = waiting(&engine, Interactive, 10);
    begun(&engine);
    let mut asked = [waiting(&engine, Interactive, 10), waiting(&engine, Batch, 20)];
    let mut told = || {
        engine.lock().announce(1);
        asked.each_mut().map(|asked| {
            let What::Waits { position, eta } = asked.news.try_recv().ok()?.what else {
                panic!("something else")
            };
            Some((position, eta.unwrap().as_millis()))
        })
    };
    // Not all the time.
    engine.lock().announced = Instant::now();
    assert_eq!(told(), [None, None]);
    std::thread::sleep(ANNOUNCE);
    // 105 ms are before the first, and each takes its own.
    assert_eq!(told(), [Some((0, 210)), Some((1, 415))]);
}

#[test]
fn a_round_is_a_step_of_each_size() {
    let engine = engine(4, 8);
    let inner = engine.lock();
    let flight = |size| Flight {
        task: 0,
        index: 0,
        priority: Interactive,
        size,
        remaining: 1,
        deadline: None,
    };
    let flights = [flight(Some(SIZE)), flight(None), flight(Some((128, 64)))];
    let seconds = |more, batch| round(&inner.pace, &flights, more, batch, Estimate::Typical);
    // Of twice the pixels twice the time; two of a size together.
    for (more, batch, expected) in [
        (None, 4, 0.030),
        (Some(SIZE), 4, 0.040),
        (Some((128, 64)), 4, 0.050),
        (Some(SIZE), 1, 0.030),
    ] {
        let found = seconds(more, batch);
        assert!((found - expected).abs() < 1e-9, "{more:?}: {found}");
    }
}
