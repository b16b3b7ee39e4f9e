//! A store that means us ill. What a real one does is shown in `tests/spec/replicas.rs`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock::ManualClock;

/// Answers every command as Redis would, and always has another full page of news.
async fn never_ends(stream: TcpStream, told: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    while let Some(command) = command(&mut stream).await {
        let answer = match command.as_str() {
            "XREVRANGE" => "*0\r\n".to_owned(),
            "ZSCAN" => "*2\r\n$1\r\n0\r\n*0\r\n".to_owned(),
            "XREAD" | "ZCARD" => "+QUEUED\r\n".to_owned(),
            "EXEC" => {
                let from = told.fetch_add(BATCH, Ordering::Relaxed);
                let one = |number: usize| {
                    let (id, line) = (format!("{number}-1"), format!("rubbish {number}"));
                    let (id_bytes, line_bytes) = (id.len(), line.len());
                    format!("*2\r\n${id_bytes}\r\n{id}\r\n*2\r\n$4\r\nline\r\n${line_bytes}\r\n{line}\r\n")
                };
                let news: String = (from..from + BATCH).map(one).collect();
                format!("*2\r\n*1\r\n*2\r\n$4\r\nnews\r\n*{BATCH}\r\n{news}:0\r\n")
            }
            _ => "+OK\r\n".to_owned(),
        };
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The first word of the next command.
async fn command(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let words: usize = line.trim_end().strip_prefix('*')?.parse().ok()?;
    let mut first = None;
    for _ in 0..words {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let length: usize = line.trim_end().strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; length + 2];
        stream.read_exact(&mut word).await.ok()?;
        word.truncate(length);
        first.get_or_insert(String::from_utf8(word).ok()?);
    }
    first
}

/// News come before the set is counted: whoever always has more must not be listened to for ever, nor all of it kept.
#[tokio::test]
async fn a_store_whose_news_never_end_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, telling) = (Arc::clone(&connections), Arc::clone(&told));
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(never_ends(stream, Arc::clone(&telling)));
        }
    });
    let list = Revocations::new(1, ManualClock::at(SystemTime::UNIX_EPOCH), Arc::new(|_, _, _| ()));
    let settings = RedisConfig {
        host: "127.0.0.1".to_owned(),
        port,
        database: 0,
        username: None,
        password_file: None,
        tls: None,
        prefix: "gatepost".to_owned(),
    };
    let replicas = Replicas::new(settings, &list);
    let stop = CancellationToken::new();
    replicas.spawn(stop.clone());
    let left = tokio::time::timeout(Duration::from_secs(20), async {
        while connections.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    });
    let left = left.await;
    stop.cancel();
    serving.abort();
    let told = told.load(Ordering::Relaxed);
    assert!(left.is_ok(), "{told} pieces of news, and still listening");
    assert!(list.is_empty());
}
