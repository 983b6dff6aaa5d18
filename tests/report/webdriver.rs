//! A headless browser, driven over W3C WebDriver: chromedriver on a free port of the loopback interface, spoken to in
//! plain HTTP. Everything that it starts ends with it, and its profile is a directory that goes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

const FLAGS: &str = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage \
    --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars \
    --force-prefers-reduced-motion";
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// No answer takes a second; one that takes this long never comes.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts it; none where it is not installed, which is told, unless `RLHF_BROWSER=1` demands it.
    pub(super) fn start(what: &str) -> Option<Self> {
        let is_there =
            |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
        if let Some(missing) = ["chromium", "chromedriver"].into_iter().find(|program| !is_there(program)) {
            let demanded = std::env::var_os("RLHF_BROWSER").is_some_and(|value| value == "1");
            assert!(!demanded, "{missing} is not installed, and RLHF_BROWSER=1 demands it");
            println!("skipped without {missing}: {what}");
            return None;
        }
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver ended").unwrap();
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim_end_matches('.').parse().unwrap();
            }
        };
        // Its output must be read, or it would stop.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let mut flags: Vec<String> = FLAGS.split_whitespace().map(str::to_owned).collect();
        flags.push(format!("--user-data-dir={}", profile.path().display()));
        let mut browser = Self { driver, port, session: String::new(), _profile: profile };
        let capabilities =
            json!({ "goog:loggingPrefs": { "browser": "ALL" }, "goog:chromeOptions": { "args": flags } });
        let session = browser.call("POST", "/session", &json!({ "capabilities": { "alwaysMatch": capabilities } }));
        browser.session = format!("/session/{}", session["sessionId"].as_str().expect("no session"));
        Some(browser)
    }

    /// One request, and the value of its answer.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n", self.port);
        let length = body.len();
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer["value"]["error"].is_null(), "{method} {path} {body}: {}", answer["value"]);
        answer["value"].clone()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    /// A command of the browser's own protocol.
    fn command(&self, name: &str, parameters: &Value) {
        self.post("/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }));
    }

    /// Shows a file in a window of this width, in the theme that the system is said to prefer.
    pub(super) fn open(&self, path: &std::path::Path, width: usize, theme: &str) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", &metrics);
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": theme }] });
        self.command("Emulation.setEmulatedMedia", &media);
        self.post("/url", &json!({ "url": format!("file://{}", path.display()) }));
        // Charts are drawn when their width is known, a frame later.
        let drawn = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))";
        self.command("Runtime.evaluate", &json!({ "expression": drawn, "awaitPromise": true }));
    }

    /// What a script returns.
    pub(super) fn script(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text that is shown of the first element that a selector finds.
    pub(super) fn text(&self, selector: &str) -> String {
        self.script(&format!("return document.querySelector({selector:?}).innerText")).as_str().unwrap().to_owned()
    }

    fn element(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    pub(super) fn click(&self, selector: &str) {
        self.post(&format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types into an element; the keys are real.
    pub(super) fn type_into(&self, selector: &str, text: &str) {
        self.post(&format!("/element/{}/value", self.element(selector)), &json!({ "text": text }));
    }

    /// Moves a pointer of this kind to a place in the element, in shares of its width and height, and presses it if it
    /// is a finger.
    pub(super) fn point(&self, kind: &str, selector: &str, [across, down]: [f64; 2]) {
        let script = format!(
            "const node = document.querySelector({selector:?}); \
             node.scrollIntoView({{ block: 'center', behavior: 'instant' }}); \
             const box = node.getBoundingClientRect(); \
             return [box.left + box.width * {across}, box.top + box.height * {down}]"
        );
        let place = self.script(&script);
        let [x, y] = [0, 1].map(|i| place[i].as_f64().unwrap().round() as i64);
        let mut moves = vec![json!({ "type": "pointerMove", "duration": 0, "x": x, "y": y })];
        if kind == "touch" {
            moves.push(json!({ "type": "pointerDown", "button": 0 }));
        }
        let pointer = json!({ "type": "pointer", "id": kind, "parameters": { "pointerType": kind }, "actions": moves });
        self.post("/actions", &json!({ "actions": [pointer] }));
    }

    /// Lets go of all that is pressed.
    pub(super) fn release(&self) {
        self.call("DELETE", &format!("{}/actions", self.session), &Value::Null);
    }

    /// What the browser's log got since the last call.
    pub(super) fn log(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Also after a failed check, where nothing may fail any more: a browser whose driver is killed lives on.
        if let (false, Ok(mut stream)) = (self.session.is_empty(), TcpStream::connect(("127.0.0.1", self.port))) {
            let head = format!("DELETE {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", self.session, self.port);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = write!(stream, "{head}Connection: close\r\n\r\n");
            // The first byte of the answer comes when the browser has ended.
            let _ = stream.read_exact(&mut [0]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
