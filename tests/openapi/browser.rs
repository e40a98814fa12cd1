//! `/docs` in a real browser.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use honcho_tests::{Service, eventually};
use serde_json::Value;
use thirtyfour::{
    By, ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver, WebElement,
    prelude::ElementQueryable,
};

use crate::{TOKEN, cluster, service};

/// A driver of Chromium, killed when dropped.
struct Driver {
    child: Child,
    url: String,
}

impl Driver {
    fn start() -> Result<Self> {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("chromedriver does not run (make test-openapi installs it)")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let port = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse::<u16>().ok()
            });
        let mut driver = Self {
            child,
            url: String::new(),
        };
        driver.url = format!(
            "http://127.0.0.1:{}",
            port.context("chromedriver has no port")?
        );
        Ok(driver)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn browser(driver: &Driver, profile: &Path) -> Result<WebDriver> {
    let mut capabilities = DesiredCapabilities::chrome();
    for argument in [
        "--headless",
        // Chromium has no sandbox for root, which runs tests in containers.
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        // Requests of the browser to its vendor are not part of the test.
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1600",
    ] {
        capabilities.add_arg(argument)?;
    }
    capabilities.add_arg(&format!("--user-data-dir={}", profile.display()))?;
    capabilities.set_logging_prefs("browser", LoggingPrefsLogLevel::All)?;
    capabilities.set_logging_prefs("performance", LoggingPrefsLogLevel::All)?;
    Ok(WebDriver::new(&driver.url, capabilities).await?)
}

/// Waits for an element and clicks it.
async fn click(browser: &WebDriver, selector: &str) -> Result<()> {
    let element = element(browser, selector).await?;
    element.scroll_into_view().await?;
    element
        .click()
        .await
        .with_context(|| format!("cannot click {selector}"))
}

async fn element(browser: &WebDriver, selector: &str) -> Result<WebElement> {
    let found = browser
        .query(By::Css(selector))
        .and_displayed()
        .first()
        .await;
    found.with_context(|| format!("{selector} is not there"))
}

/// Opens an operation, clicks "Try it out" and "Execute", and returns the displayed status.
async fn execute(browser: &WebDriver, operation: &str) -> Result<String> {
    click(browser, &format!("{operation} .opblock-summary-control")).await?;
    click(browser, &format!("{operation} .try-out__btn")).await?;
    click(browser, &format!("{operation} .execute")).await?;
    let status = format!("{operation} .live-responses-table .response-col_status");
    eventually("an answer to be shown", async || {
        // The head of the table has a cell of this class as well.
        for cell in browser.find_all(By::Css(status.as_str())).await? {
            let text = cell.text().await?;
            if text.starts_with(|character: char| character.is_ascii_digit()) {
                return Ok(Some(text));
            }
        }
        Ok(None)
    })
    .await
}

/// The addresses of all requests, and all errors on the console.
async fn logged(browser: &WebDriver) -> Result<(Vec<String>, Vec<String>)> {
    let mut requests = Vec::new();
    for entry in browser.get_log("performance").await? {
        let event: Value = serde_json::from_str(&entry.message)?;
        let event = &event["message"];
        if event["method"] == "Network.requestWillBeSent" {
            let url = event["params"]["request"]["url"].as_str();
            requests.push(url.context("a request without an address")?.to_owned());
        }
    }
    let errors = browser.get_log("browser").await?;
    let errors = errors
        .into_iter()
        .filter(|entry| entry.level == "SEVERE")
        .map(|entry| entry.message)
        .collect();
    Ok((requests, errors))
}

async fn use_docs(browser: &WebDriver, service: &Service) -> Result<()> {
    browser.goto(service.url("/docs")).await?;
    ensure!(browser.current_url().await?.path() == "/docs/");
    click(browser, ".scheme-container .btn.authorize").await?;
    element(browser, ".auth-container input")
        .await?
        .send_keys(TOKEN)
        .await?;
    click(browser, ".auth-btn-wrapper .authorize").await?;
    click(browser, ".auth-btn-wrapper .btn-done").await?;

    // The request is the description's example.
    let created = execute(browser, "#operations-coupons-create_coupon").await?;
    ensure!(created.starts_with("201"), "creating shows {created}");
    let claimed = execute(browser, "#operations-claims-claim").await?;
    ensure!(claimed.starts_with("200"), "claiming shows {claimed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn coupon_is_claimed_through_the_documentation_page() -> Result<()> {
    let cluster = cluster()?;
    let (database, service) = service(&cluster).await?;
    let driver = Driver::start()?;
    let profile = tempfile::tempdir()?;
    let browser = browser(&driver, profile.path()).await?;
    let used = use_docs(&browser, &service).await;
    // A screenshot for people, above all after a failure.
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs.png");
    browser.screenshot(&screenshot).await?;
    let logged = logged(&browser).await;
    browser.quit().await?;
    used.with_context(|| format!("see {}", screenshot.display()))?;

    let (requests, errors) = logged?;
    let own = service.url("/");
    for wanted in [
        "docs/swagger-ui-bundle.js",
        "openapi.json",
        "api/coupons/claim",
    ] {
        let wanted = format!("{own}{wanted}");
        ensure!(
            requests.contains(&wanted),
            "no request for {wanted}: {requests:?}"
        );
    }
    let elsewhere: Vec<_> = requests
        .iter()
        // Other addresses are pages of the browser and inline images.
        .filter(|url| url.starts_with("http") || url.starts_with("ws"))
        .filter(|url| !url.starts_with(&own))
        .collect();
    ensure!(
        elsewhere.is_empty(),
        "requests went elsewhere: {elsewhere:?}"
    );
    ensure!(errors.is_empty(), "errors on the console: {errors:?}");

    let claims = database
        .connect()
        .await?
        .query("select user_id, coupon_name from claims", &[])
        .await?;
    ensure!(claims.len() == 1, "{claims:?}");
    let claim: (String, String) = (claims[0].get(0), claims[0].get(1));
    ensure!(
        claim == ("user_12345".into(), "PROMO_SUPER".into()),
        "{claim:?}"
    );
    database.books().await
}
