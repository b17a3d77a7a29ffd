//! Moves frames between pairs of TAPs: few threads, each for many pairs.
//!
//! What a thread writes to one pair's TAP goes through the kernel's bridge and
//! routing at once, in the same system call, and is often to be read from
//! another pair's TAP next: one thread does that without being woken again.
//! A wake-up costs more than all the rest of a small frame's way, so a thread
//! that has moved something looks around for a moment before it sleeps.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::thread::sched_yield;

use super::joined::Ended;
use super::pump::{read_frame, write_frame};
use super::stats::Both;
use super::wire::FRAME;

/// How long a thread looks around after it has moved something. Longer than
/// a request and its answer take on one machine, and too short to be seen in
/// the use of a core by anything but request and answer.
const LOOK_AROUND: Duration = Duration::from_micros(50);
/// Frames moved one way before the others have their turn.
const TURN: usize = 64;
/// Threads at most.
const THREADS: usize = 4;
/// Event of a thread's orders.
const ORDERS: u64 = u64::MAX;

/// The threads.
#[derive(Debug)]
pub struct Engine {
    workers: Vec<Arc<Worker>>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Worker {
    epoll: OwnedFd,
    wake: OwnedFd,
    orders: Mutex<Vec<Order>>,
    keys: AtomicU64,
}

#[derive(Debug)]
enum Order {
    Add(u64, Pair),
    /// Answered when both ends are closed.
    Remove(u64, Sender<()>),
}

/// Two TAPs to join.
pub struct Pair {
    pub bridge: File,
    pub pod: File,
    pub counters: Arc<Both>,
    /// Called at the first failure; nothing is moved after it.
    pub ended: Ended,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("bridge", &self.bridge)
            .field("pod", &self.pod)
            .finish_non_exhaustive()
    }
}

/// A pair in an engine: taken out, and its ends closed, when it is dropped.
#[derive(Debug)]
pub struct Registered {
    worker: Arc<Worker>,
    key: u64,
}

impl Engine {
    /// Starts a thread for every second CPU.
    pub fn start() -> io::Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..(cpus / 2).clamp(1, THREADS))
            .map(|number| Worker::start(number, cpus > 1))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            workers,
            next: AtomicUsize::new(0),
        })
    }

    pub fn add(&self, pair: Pair) -> io::Result<Registered> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let worker = self.workers[turn % self.workers.len()].clone();
        let key = worker.keys.fetch_add(1, Ordering::Relaxed);
        worker.order(Order::Add(key, pair))?;
        Ok(Registered { worker, key })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let (sender, done) = channel();
        // A worker that is no more has closed everything.
        if self.worker.order(Order::Remove(self.key, sender)).is_ok() {
            let _ = done.recv();
        }
    }
}

impl Worker {
    fn start(number: usize, looks_around: bool) -> io::Result<Arc<Self>> {
        let worker = Arc::new(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            orders: Mutex::default(),
            keys: AtomicU64::new(0),
        });
        let event = EventData::new_u64(ORDERS);
        epoll::add(&worker.epoll, &worker.wake, event, EventFlags::IN)?;
        let own = worker.clone();
        std::thread::Builder::new()
            .name(format!("frames-{number}"))
            .spawn(move || own.run(looks_around))?;
        Ok(worker)
    }

    fn orders(&self) -> MutexGuard<'_, Vec<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) -> io::Result<()> {
        self.orders().push(order);
        match rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            // It is awake.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn run(&self, looks_around: bool) {
        let mut pairs: HashMap<u64, Pair> = HashMap::new();
        let mut events: Vec<Event> = Vec::with_capacity(64);
        let mut buffer = vec![0; FRAME];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut moved: Option<Instant> = None;
        loop {
            events.clear();
            let timeout = moved.map(|_| &now);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                // Our own descriptor is bad: nothing can be moved any more.
                Err(_) => return pairs.values().for_each(|pair| (pair.ended)()),
            }
            if events.is_empty() {
                moved = moved.filter(|last| last.elapsed() < LOOK_AROUND);
                // Whoever was just sent something may wait for this CPU.
                sched_yield();
                continue;
            }
            for event in &events {
                let data = event.data.u64();
                if data == ORDERS {
                    self.obey(&mut pairs);
                } else if let Some(pair) = pairs.get(&(data >> 1)) {
                    let turned = pair.turn(data & 1 == 0, &mut buffer);
                    if turned.is_err() {
                        self.forget(pair);
                        (pair.ended)();
                    }
                }
            }
            moved = looks_around.then(Instant::now);
        }
    }

    fn obey(&self, pairs: &mut HashMap<u64, Pair>) {
        let mut count = [0; 8];
        // Nothing in it: somebody else's wake-up was the same.
        let _ = rustix::io::read(&self.wake, &mut count);
        for order in self.orders().drain(..) {
            match order {
                Order::Add(key, pair) => {
                    let watch = |tap: &File, bit: u64| {
                        let data = EventData::new_u64(key << 1 | bit);
                        epoll::add(&self.epoll, tap, data, EventFlags::IN)
                    };
                    if watch(&pair.pod, 0).and(watch(&pair.bridge, 1)).is_err() {
                        (pair.ended)();
                    }
                    pairs.insert(key, pair);
                }
                Order::Remove(key, done) => {
                    if let Some(pair) = pairs.remove(&key) {
                        self.forget(&pair);
                    }
                    // The one who waited may have been killed.
                    let _ = done.send(());
                }
            }
        }
    }

    /// The same descriptors may be open elsewhere, and would go on to be seen.
    fn forget(&self, pair: &Pair) {
        for tap in [&pair.pod, &pair.bridge] {
            // Forgotten before.
            let _ = epoll::delete(&self.epoll, tap);
        }
    }
}

impl Pair {
    fn turn(&self, from_pod: bool, buffer: &mut [u8]) -> io::Result<()> {
        let (from, to, counters) = match from_pod {
            true => (&self.pod, &self.bridge, &self.counters.from_pod),
            false => (&self.bridge, &self.pod, &self.counters.to_pod),
        };
        for _ in 0..TURN {
            let Some(length) = read_frame(from, buffer)? else {
                break;
            };
            write_frame(to, &buffer[..length], counters)?;
        }
        Ok(())
    }
}
