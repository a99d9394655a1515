"""Chromium through its driver for tests of the pages: Debian's chromium, chromium-driver and python3-selenium."""
import atexit, json, os, shutil, sys, tempfile, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
sys.dont_write_bytecode = True
DEBIAN = "/usr/lib/python3/dist-packages"    # a virtual environment does not see it
PATIENCE_S = float(os.environ.get("SL_WEB_PATIENCE_S", 60))    # for what a page is waiting for, on a loaded machine


def require():
    """Ends with 77 where there is no browser."""
    if DEBIAN not in sys.path:
        sys.path.append(DEBIAN)
    try:
        import selenium    # noqa: F401
    except ImportError:
        not_run("python3-selenium is not installed")
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            not_run(f"{program} is not installed")


def not_run(why):
    print(f"not run: {why}")
    sys.exit(77)


class Browser:
    def __init__(self, url, width=1280, height=900, dark=False, phone=False):
        require()
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en-US",
                         f"--window-size={width},{height}", "--no-first-run", "--disable-background-networking",
                         "--hide-scrollbars", "--force-color-profile=srgb", "--proxy-server=direct://"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.url, self.logs = url, []
        self.dir = tempfile.mkdtemp(prefix="sl-browser-")    # Chromium does not remove all that it puts into TMPDIR
        atexit.register(shutil.rmtree, self.dir, ignore_errors=True)
        self.driver = webdriver.Chrome(service=Service(shutil.which("chromedriver"), env={**os.environ, "TMPDIR": self.dir}), options=options)
        self.driver.set_page_load_timeout(PATIENCE_S)
        self.driver.set_script_timeout(PATIENCE_S)
        self.look(width, height, dark, phone)

    def look(self, width, height, dark=False, phone=False):
        """The window's size in CSS pixels, and light or dark."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def open(self, path):
        self.driver.get(self.url + path)

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def text(self, css="main"):
        return self.js("const e = document.querySelector(arguments[0]); return e ? e.innerText : ''", css)

    def until(self, what, says, patience=PATIENCE_S):
        """Waits until what() gives something; what it gives."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        end = time.monotonic() + patience
        while True:
            try:
                found = what()
            except (NoSuchElementException, StaleElementReferenceException):
                found = None
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"not within {patience} s: {says}; the page says: {self.text('body')[:600]!r}; "
                                     f"the console: {self.console()[-5:]}")
            time.sleep(0.05)

    def find(self, css, text=None):
        """The first visible element of css whose text has `text`; waits for it."""
        def look():
            for e in self.all(css):
                if e.is_displayed() and (text is None or text in e.text):
                    return e
        return self.until(look, f"{css} {text or ''}")

    def click(self, css, text=None):
        """Clicks; again when the page has replaced the element under the pointer."""
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
        def press():
            try:
                e = self.find(css, text)
                self.js("arguments[0].scrollIntoView({block: 'center'})", e)    # not below the bar at the top
                e.click()
                return True
            except (StaleElementReferenceException, ElementClickInterceptedException):
                return None
        self.until(press, f"a click on {css} {text or ''}")

    def type(self, css, text):
        e = self.find(css)
        e.clear()
        e.send_keys(text)

    def sees(self, text, css="main"):
        return self.until(lambda: text in self.text(css), f"{text!r} in {css}")

    def sign_in(self, token, to="/"):
        self.open("/login?to=" + to.replace("?", "%3F").replace("&", "%26"))
        self.type("input[type=password]", token)
        self.click("form button.primary")
        self.until(lambda: "/login" not in self.driver.current_url, "signed in")

    def console(self):
        """What the browser complained about: errors of scripts, of the policy, of requests."""
        self.logs += [f"{e['level']} {e['message']}" for e in self.driver.get_log("browser")]
        return self.logs

    def picture(self, path, full=False):
        import base64
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        with open(path, "wb") as f:
            f.write(base64.b64decode(shot["data"]))

    def close(self):
        self.driver.quit()
        shutil.rmtree(self.dir, ignore_errors=True)
