//! Why a message was not sent or not received.

use std::fmt;
use std::io;

use super::Stop;

/// Declares an error: its variants beside `Disconnected` and `Failed`.
macro_rules! sending {
    ($(#[$meta:meta])* $name:ident { $($(#[$own:meta])* $variant:ident: $text:literal),* }) => {
        $(#[$meta])*
        #[non_exhaustive]
        pub enum $name<T> {
            $($(#[$own])* $variant(T),)*
            /// Nobody can receive any more.
            Disconnected(T),
            /// It cannot be sent: it cannot be encoded, its descriptors cannot be sent, there is no memory. The message comes back.
            Failed(T, io::Error),
        }

        impl<T> $name<T> {
            /// The message.
            pub fn into_inner(self) -> T {
                match self {
                    $(Self::$variant(value) => value,)*
                    Self::Disconnected(value) | Self::Failed(value, _) => value,
                }
            }
        }

        impl<T> fmt::Display for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(_) => f.write_str($text),)*
                    Self::Disconnected(_) => f.write_str("nobody can receive any more"),
                    Self::Failed(_, error) => write!(f, "the message cannot be sent: {error}"),
                }
            }
        }

        // Whatever the message is, as std's do.
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(_) => f.write_str(concat!(stringify!($variant), "(..)")),)*
                    Self::Disconnected(_) => f.write_str("Disconnected(..)"),
                    Self::Failed(_, error) => write!(f, "Failed(.., {error:?})"),
                }
            }
        }

        impl<T> std::error::Error for $name<T> {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                match self {
                    Self::Failed(_, error) => Some(error),
                    _ => None,
                }
            }
        }
    };
}

macro_rules! receiving {
    ($(#[$meta:meta])* $name:ident { $($(#[$own:meta])* $variant:ident: $text:literal),* }) => {
        $(#[$meta])*
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$own])* $variant,)*
            /// Nobody can send any more, and all that was sent has been received.
            Disconnected,
            /// A message came that cannot be had: it cannot be decoded, there is no room for its descriptors. It is lost; the next may come. Or,
            /// if it was to be received without waiting in the call, there is no descriptor for telling of it: then nothing is lost.
            Failed(io::Error),
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($text),)*
                    Self::Disconnected => f.write_str("nobody can send any more"),
                    Self::Failed(error) => write!(f, "a message cannot be received: {error}"),
                }
            }
        }

        impl std::error::Error for $name {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                match self {
                    Self::Failed(error) => Some(error),
                    _ => None,
                }
            }
        }
    };
}

sending! {
    /// Why [`Sender::send`](crate::Sender::send) did not.
    ///
    /// ```
    /// let (sender, receiver) = offspring::channel(1)?;
    /// drop(receiver);
    /// assert!(matches!(sender.send(7), Err(offspring::SendError::Disconnected(7))));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    SendError {}
}

sending! {
    /// Why [`Sender::try_send`](crate::Sender::try_send) did not.
    ///
    /// ```
    /// let (sender, _receiver) = offspring::channel(1)?;
    /// sender.try_send("first").unwrap();
    /// assert!(matches!(sender.try_send("second"), Err(offspring::TrySendError::Full("second"))));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    TrySendError {
        /// There is no room.
        Full: "the channel is full"
    }
}

sending! {
    /// Why [`Sender::send_timeout`](crate::Sender::send_timeout) did not.
    ///
    /// ```
    /// use std::time::Duration;
    /// let (sender, _receiver) = offspring::channel(1)?;
    /// sender.send(1)?;
    /// let error = sender.send_timeout(2, Duration::from_millis(1)).unwrap_err();
    /// assert!(matches!(error, offspring::SendTimeoutError::Timeout(2)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    SendTimeoutError {
        /// There was no room in that time.
        Timeout: "the channel was full for so long"
    }
}

receiving! {
    /// Why [`Receiver::recv`](crate::Receiver::recv) gave nothing.
    ///
    /// ```
    /// let (sender, receiver) = offspring::channel::<u8>(1)?;
    /// drop(sender);
    /// assert!(matches!(receiver.recv(), Err(offspring::RecvError::Disconnected)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    RecvError {}
}

receiving! {
    /// Why [`Receiver::try_recv`](crate::Receiver::try_recv) gave nothing.
    ///
    /// ```
    /// let (_sender, receiver) = offspring::channel::<u8>(1)?;
    /// assert!(matches!(receiver.try_recv(), Err(offspring::TryRecvError::Empty)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    TryRecvError {
        /// There is no message.
        Empty: "the channel is empty"
    }
}

receiving! {
    /// Why [`Receiver::recv_timeout`](crate::Receiver::recv_timeout) gave nothing.
    ///
    /// ```
    /// use std::time::Duration;
    /// let (_sender, receiver) = offspring::channel::<u8>(1)?;
    /// let error = receiver.recv_timeout(Duration::from_millis(1)).unwrap_err();
    /// assert!(matches!(error, offspring::RecvTimeoutError::Timeout));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    RecvTimeoutError {
        /// No message came in that time.
        Timeout: "no message came in that time"
    }
}

impl<T> SendError<T> {
    pub(super) fn new(value: T, stop: Stop) -> Self {
        match stop {
            Stop::Disconnected => Self::Disconnected(value),
            Stop::Failed(error) => Self::Failed(value, error),
            // Nobody waits for ever and is told so.
            Stop::Wait(_) => Self::Failed(value, io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<T> TrySendError<T> {
    pub(super) fn new(value: T, stop: Stop) -> Self {
        match stop {
            Stop::Wait(_) => Self::Full(value),
            Stop::Disconnected => Self::Disconnected(value),
            Stop::Failed(error) => Self::Failed(value, error),
        }
    }
}

impl<T> SendTimeoutError<T> {
    pub(super) fn new(value: T, stop: Stop) -> Self {
        match stop {
            Stop::Wait(_) => Self::Timeout(value),
            Stop::Disconnected => Self::Disconnected(value),
            Stop::Failed(error) => Self::Failed(value, error),
        }
    }
}

impl From<Stop> for RecvError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Disconnected => Self::Disconnected,
            Stop::Failed(error) => Self::Failed(error),
            // Nobody waits for ever and is told so.
            Stop::Wait(_) => Self::Failed(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl From<Stop> for TryRecvError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Wait(_) => Self::Empty,
            Stop::Disconnected => Self::Disconnected,
            Stop::Failed(error) => Self::Failed(error),
        }
    }
}

impl From<Stop> for RecvTimeoutError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Wait(_) => Self::Timeout,
            Stop::Disconnected => Self::Disconnected,
            Stop::Failed(error) => Self::Failed(error),
        }
    }
}
