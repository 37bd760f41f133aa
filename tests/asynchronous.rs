//! The handle as a future: with tokio, and with an executor of thirty lines.

#[path = "harness/mod.rs"]
mod harness;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use offspring::{ErrorKind, spawn};

/// Wakes a thread.
struct Thread(std::thread::Thread);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Thread(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn sleep(_: ()) {
    std::thread::sleep(Duration::from_secs(3600));
}

behaviour! {
    fn await_is_wait() {
        assert_eq!(block_on(spawn(1, |n: u32| n + 1).unwrap()).unwrap(), 2);
        let mut unit = spawn(1, |n: u32| n + 1).unwrap();
        assert_eq!(block_on(&mut unit).unwrap(), 2);
        assert_eq!(block_on(&mut unit).unwrap_err().kind(), ErrorKind::Taken);
        assert_eq!(block_on(spawn((), |()| -> () { panic!() }).unwrap()).unwrap_err().kind(), ErrorKind::Panicked);
    }

    fn under_tokio_with_a_timeout_and_many_at_once() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        runtime.block_on(async {
            let mut slow = spawn((), sleep).unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(20), &mut slow).await.is_err());
            slow.process().unwrap().begin_shutdown();
            assert_eq!((&mut slow).await.unwrap_err().kind(), ErrorKind::Died);
            let tasks: Vec<_> = (0..32_u32)
                .map(|n| tokio::spawn(async move { spawn(n, |n: u32| n * 2).unwrap().await.unwrap() }))
                .collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.unwrap();
            }
            assert_eq!(sum, 31 * 32);
        });
        drop(runtime);
    }

    fn what_would_block_in_a_waker_is_an_error() {
        struct Blocks(std::sync::mpsc::SyncSender<ErrorKind>);
        impl Wake for Blocks {
            fn wake(self: Arc<Self>) {
                let error = spawn((), sleep).unwrap().wait().unwrap_err();
                self.0.send(error.kind()).unwrap();
            }
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let mut unit = spawn((), sleep).unwrap();
        let waker = Waker::from(Arc::new(Blocks(sender)));
        assert!(pin!(&mut unit).poll(&mut Context::from_waker(&waker)).is_pending());
        unit.process().unwrap().kill().unwrap();
        assert_eq!(receiver.recv().unwrap(), ErrorKind::Unsupported);
    }

    fn a_waker_may_shut_everything_down() {
        struct Last;
        impl Wake for Last {
            fn wake(self: Arc<Self>) {
                offspring::shutdown();
            }
        }
        // While another thread is in the middle of a shutdown, and waits for the very thread that calls the waker.
        let mut unit = spawn((), sleep).unwrap();
        let waker = Waker::from(Arc::new(Last));
        assert!(pin!(&mut unit).poll(&mut Context::from_waker(&waker)).is_pending());
        offspring::shutdown();
        // And by itself.
        let mut unit = spawn((), |()| 5).unwrap();
        let waker = Waker::from(Arc::new(Last));
        let _ = pin!(&mut unit).poll(&mut Context::from_waker(&waker));
        let process = unit.process().unwrap().clone();
        harness::eventually("it did not end", || !process.is_alive());
    }
}
