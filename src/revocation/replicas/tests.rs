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

/// Listens to such a store, with `told` in its ear, until there have been two connections. How many news were told, if
/// there were.
async fn until_it_comes_again(told: crate::revocation::Told) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, news) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, telling) = (Arc::clone(&connections), Arc::clone(&news));
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(never_ends(stream, Arc::clone(&telling)));
        }
    });
    let list = Revocations::new(1, ManualClock::at(SystemTime::UNIX_EPOCH), told);
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
    let twice = tokio::time::timeout(Duration::from_secs(20), async {
        while connections.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    });
    let twice = twice.await;
    stop.cancel();
    serving.abort();
    assert!(list.is_empty());
    twice.map_err(|_| format!("{} pieces of news, and no other connection", news.load(Ordering::Relaxed)))
}

/// News come before the set is counted: whoever always has more must not be listened to for ever, nor all of it kept.
#[tokio::test]
async fn a_store_whose_news_never_end_is_left() {
    until_it_comes_again(Arc::new(|_, _, _| ())).await.unwrap();
}

/// A task that ends so would end quietly, and others' revocations would never come again.
#[tokio::test]
async fn a_fault_over_what_the_store_says_does_not_end_the_listening() {
    until_it_comes_again(Arc::new(|_, _, _| panic!("a fault of ours"))).await.unwrap();
}
