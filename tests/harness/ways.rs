//! The two ways that a channel's messages go.

/// How messages go: by memory as far as it will do, or by the socket alone.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Memory,
    Socket,
}

pub const WAYS: [Way; 2] = [Way::Memory, Way::Socket];

/// A channel whose messages go that way.
pub fn by_way<T>(way: Way, bound: usize) -> (offspring::Sender<T>, offspring::Receiver<T>) {
    let (sender, receiver) = offspring::channel(bound).unwrap();
    if way == Way::Socket {
        // Who wants to poll it is told of the socket's alone.
        let _ = std::os::fd::AsFd::as_fd(&receiver);
    }
    (sender, receiver)
}
