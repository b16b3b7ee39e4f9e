//! Protobuf over tonic, read from one slice.
//!
//! tonic's own codec lets prost read through its buffer of many parts, byte by byte where a slice would do: for a message of
//! many small fields that is most of the cost of reading it.

use std::marker::PhantomData;

use bytes::{Buf as _, BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What answers and questions start with room for, and what is written at once. Answers are small.
fn buffer() -> BufferSettings {
    BufferSettings::new(2 * 1024, 16 * 1024)
}

/// Writes `T`, reads `U`.
#[derive(Debug, Clone)]
pub struct SliceCodec<T, U>(PhantomData<(T, U)>);

/// Writes `T`, and leaves what is read to whoever gets it.
#[derive(Debug, Clone)]
pub struct UnreadCodec<T>(PhantomData<T>);

/// What is written as it stands: not every message has to be one of the library's.
pub trait Outgoing: Send + 'static {
    /// How many bytes it takes.
    fn bytes(&self) -> usize;

    /// Writes it. There is room for it.
    fn put(&self, to: &mut impl BufMut);
}

/// Writes messages.
#[derive(Debug, Clone)]
pub struct Writes<T>(PhantomData<T>);

/// Writes what knows how.
#[derive(Debug, Clone)]
pub struct Puts<T>(PhantomData<T>);

/// Reads messages.
#[derive(Debug, Clone)]
pub struct Reads<U>(PhantomData<U>);

/// Takes messages as they are.
#[derive(Debug, Clone, Copy)]
pub struct Takes;

impl<T, U> Default for SliceCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for UnreadCodec<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Message + Default + 'static> Codec for SliceCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Writes<T>;
    type Decoder = Reads<U>;

    fn encoder(&mut self) -> Writes<T> {
        Writes(PhantomData)
    }

    fn decoder(&mut self) -> Reads<U> {
        Reads(PhantomData)
    }
}

impl<T: Outgoing> Codec for UnreadCodec<T> {
    type Encode = T;
    type Decode = Bytes;
    type Encoder = Puts<T>;
    type Decoder = Takes;

    fn encoder(&mut self) -> Puts<T> {
        Puts(PhantomData)
    }

    fn decoder(&mut self) -> Takes {
        Takes
    }
}

impl<T: Message> Encoder for Writes<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.encoded_len());
        item.encode(to).map_err(|_| Status::internal("the message does not fit"))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer()
    }
}

impl<T: Outgoing> Encoder for Puts<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.bytes());
        item.put(to);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer()
    }
}

impl<U: Message + Default> Decoder for Reads<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let whole = from.copy_to_bytes(from.remaining());
        // As tonic's own codec has it: a message that can't be read is INTERNAL.
        // Source: gRPC, "Status codes and their use in gRPC".
        U::decode(whole.as_ref()).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer()
    }
}

impl Decoder for Takes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer()
    }
}
