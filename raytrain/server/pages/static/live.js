// A page that the server renders whole: it is asked again when something changed.

import { listen, paced, showLive } from "./api.js";
import { renew } from "./page.js";

const again = paced(renew);
listen("/events", { message: again }, (on) => (showLive(on), on && again()));
