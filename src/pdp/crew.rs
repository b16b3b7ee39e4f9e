//! Threads that take a part of a large batch, so that it is decided on more than one core.
//!
//! A part is handed over only to a thread that waits for one: nothing queues here. When all are busy so are the cores, and
//! whoever has the batch does it alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use crate::policy::STACK;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped.
pub struct Crew {
    jobs: SyncSender<Job>,
    threads: usize,
}

impl Crew {
    /// One thread fewer than the machine has cores: the batch's own thread works too.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn of_this_machine() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self::of(cores.saturating_sub(1))
    }

    /// So many threads; none is a crew too.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn of(threads: usize) -> std::io::Result<Self> {
        // No room to wait in: a job is taken at once or not at all.
        let (jobs, coming) = sync_channel::<Job>(0);
        let coming = Arc::new(Mutex::new(coming));
        for number in 0..threads {
            let coming = Arc::clone(&coming);
            let thread = std::thread::Builder::new().name(format!("batch-{number}")).stack_size(STACK);
            thread.spawn(move || work(&coming))?;
        }
        Ok(Self { jobs, threads })
    }

    /// How many there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Has a thread that is free do `job`; whether there was one. If not, it is not done.
    #[must_use]
    pub fn take(&self, job: impl FnOnce() + Send + 'static) -> bool {
        self.threads > 0 && self.jobs.try_send(Box::new(job)).is_ok()
    }
}

fn work(coming: &Mutex<Receiver<Job>>) {
    loop {
        let job = coming.lock().recv();
        let Ok(job) = job else { return };
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a part of a batch panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Threads need a moment until they wait.
    fn give(crew: &Crew, job: impl Fn() + Clone + Send + 'static) -> bool {
        (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            crew.take(job.clone())
        })
    }

    #[test]
    fn a_job_is_done_by_a_free_thread_or_not_taken_and_a_panic_costs_no_thread() {
        let crew = Crew::of(1).unwrap();
        let (told, heard) = channel();
        let (hold, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        assert!(give(&crew, || panic!("on purpose")));
        let (tell, wait) = (told.clone(), Arc::clone(&held));
        assert!(give(&crew, move || {
            let _ = wait.lock().recv();
            tell.send("held").unwrap();
        }));
        assert!(!crew.take(|| ()), "the only thread is busy");
        drop(hold);
        assert_eq!(heard.recv(), Ok("held"));
        assert!(give(&crew, move || told.send("again").unwrap()));
        assert_eq!(heard.recv(), Ok("again"));
        assert!(!Crew::of(0).unwrap().take(|| ()), "nobody there");
    }
}
