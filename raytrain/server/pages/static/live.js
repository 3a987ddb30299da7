// A page that the server renders whole: it is asked again when something changed.

import { listen, paced, showLive } from "./api.js";
import { renew } from "./page.js";

listen("/events", { message: paced(renew), run: paced(renew) }, showLive);
