// Draws the description of the interface from this server's own files.
"use strict";

SwaggerUIBundle({
  dom_id: "#docs",
  url: "/api/v1/openapi.json",
  validatorUrl: null, // asks nobody else
  deepLinking: true,
});
