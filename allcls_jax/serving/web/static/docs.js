// Draws the description of the interface from this server's own files.
"use strict";

SwaggerUIBundle({
  dom_id: "#docs",
  url: "/api/v1/openapi.json",
  validatorUrl: null, // asks nobody else
  deepLinking: true,
});

fetch("/api/v1/model").then((answer) => answer.json()).then(({ notes }) => {
  if (notes.length) document.querySelector(".notes").textContent = `This model: ${notes.join(", ")}.`;
});
