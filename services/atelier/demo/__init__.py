"""The whole path in a few minutes: pictures of something the model has never seen, to an endpoint that draws it."""
